"""Evaluation in FP32, the precision that every later stage is held against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from bertmp.data.batches import by_length
from bertmp.model.heads import Head
from bertmp.training.distributed import DistributedContext
from bertmp.training.tasks import TrainingData

BATCH = 64
SCORES = ("f1", "accuracy", "pearson")


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on examples with known answers.

    Attributes:
        figures: name → value: `loss`, and what the head scores (`accuracy`, …).
        examples: how many there were.
    """

    figures: dict[str, float]
    examples: int

    @property
    def loss(self) -> float:
        return self.figures["loss"]

    @property
    def score(self) -> float:
        """What evaluations are ranked by, higher is better: the first of `SCORES` there is, else -loss."""
        return next((self.figures[name] for name in SCORES if name in self.figures), -self.loss)

    def to_json(self) -> dict[str, float]:
        return {
            **{f"eval_{name}": value for name, value in self.figures.items()},
            "eval_examples": self.examples,
        }

    def describe(self) -> str:
        """The figures in one line."""
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.figures.items())
        return f"{shown} on {self.examples} examples"


@torch.no_grad()
def evaluate(head: Head, data: TrainingData, world: DistributedContext) -> Evaluation:
    """Evaluates without dropout; the head is left in its mode. Random parts are those of epoch 0.

    Args:
        head: with all its weights, in every process; see `DistributedContext.whole`.
        world: its processes share out the examples and all get the same result.
    """
    training = head.training
    head.eval()
    sums: Counter[str] = Counter()
    own, processes = world.place
    for rows in by_length(data.lengths(0), BATCH)[own::processes]:
        sums.update(head.score(data.batch(rows, 0).to(world.device)))
    head.train(training)
    return Evaluation(head.summarise(world.sum_scores(sums)), len(data))
