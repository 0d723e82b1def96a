"""Evaluation: loss and accuracy of a classifier, in FP32, the precision every later stage is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bertmp.data.batches import by_length
from bertmp.model.heads import SequenceClassifier
from bertmp.training.task import Dataset

BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """What a classifier reaches on labelled examples.

    Attributes:
        loss: mean cross-entropy, nats.
        accuracy: share of right labels.
        examples: how many there were.
    """

    loss: float
    accuracy: float
    examples: int

    def to_json(self) -> dict[str, float]:
        return {"eval_loss": self.loss, "eval_accuracy": self.accuracy, "eval_examples": self.examples}


@torch.no_grad()
def evaluate(model: SequenceClassifier, data: Dataset, device: torch.device) -> Evaluation:
    """Evaluates without dropout; the model is left in the mode it was in."""
    training = model.training
    model.eval()
    loss, right = 0.0, 0
    for rows in by_length(data.lengths, BATCH):
        batch, targets = data.batch(rows)
        batch, targets = batch.to(device), targets.to(device)
        logits = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        loss += float(model.loss(logits, targets)) * len(rows)
        right += int((logits.argmax(-1) == targets).sum())
    model.train(training)
    return Evaluation(loss / len(data), right / len(data), len(data))
