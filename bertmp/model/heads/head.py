"""The interface of all heads: graph outputs for export, loss and scores for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmp.model.bert import Bert
from bertmp.model.config import BertConfig
from bertmp.model.packed import EXACT, Batch, QuerySubset


@dataclass(frozen=True)
class LossOptions:
    """Options of the loss.

    Attributes:
        label_smoothing: fraction of the target's weight that is spread over all classes.
        class_weights: weight of each class; empty for equal weights.
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] = ()


class Head(nn.Module):
    """BERT with a task's head.

    `forward` takes INT64 `[batch, length]` ids, mask and segments and returns the graph's outputs. Training
    uses `loss_sums` on packed batches.

    The loss of a batch is the sum of `loss_sums / loss_counts`. Sums and counts are separate, so that several
    micro-batches or processes add up to exactly the loss of one large batch.

    Attributes:
        task: the head's name on the command line.
        architecture: Hugging Face's class, as in `config.json`.
        outputs: names of the graph's outputs, in the order of `forward`.
        own_keys: prefixes of the head's own weights; all others are BERT's.
        losses: names of the terms of the loss.
        problem: Hugging Face's `problem_type`, where several heads have the same architecture; else empty.
        classes: whether the logits are for the configuration's labels.
        pooling: whether the head reads the pooled state.
        tied_weights: weights that checkpoints may store twice, as (alias, our name).
        shape_grid: the multiples that the shapes of packed batches are rounded to.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    own_keys: ClassVar[tuple[str, ...]] = ()
    losses: ClassVar[tuple[str, ...]] = ()
    problem: ClassVar[str] = ""
    classes: ClassVar[bool] = False
    pooling: ClassVar[bool] = True
    tied_weights: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, self.pooling)
        self.shape_grid = EXACT

    def encode(self, batch: Batch) -> Tensor:
        """The hidden states of a packed batch, FP32 `[tokens, hidden]`."""
        return self.bert.encode(batch.input_ids, batch.token_type_ids, batch.layout(self.shape_grid))

    def encode_at(self, batch: Batch, selected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The pooled states of a packed batch, and the hidden states of selected tokens.

        The last block computes no other token unless `Bert.all_positions` is set.

        Args:
            batch: the packed batch.
            selected: INT64 `[selected]`, indices of tokens; none is the first of its sequence.

        Returns:
            FP32 `[batch, hidden]` and `[selected, hidden]`.
        """
        layout = batch.layout(self.shape_grid)
        needed = layout.cls_positions if selected is None else torch.cat([layout.cls_positions, selected])
        last = None if self.bert.all_positions else QuerySubset.of(layout, needed)
        hidden = self.bert.encode(batch.input_ids, batch.token_type_ids, layout, last)
        if last is None:
            hidden = hidden.index_select(0, needed)
        return self.bert.pool(hidden[: len(batch)]), hidden[len(batch) :]

    def loss_sums(self, batch: Batch, options: LossOptions) -> Tensor:
        """The summed loss of each term, FP32 `[losses]`."""
        raise NotImplementedError(f"{type(self).__name__} has no loss: it cannot be trained")

    def loss_counts(self, batch: Batch, options: LossOptions) -> list[float]:
        """The number (or total weight) of the summands of each term; needs no forward pass."""
        return [float(len(batch))]

    def score(self, batch: Batch) -> dict[str, float]:
        """Sums over the batch from which `summarise` computes the metrics."""
        raise NotImplementedError(f"{type(self).__name__} has no evaluation")

    @staticmethod
    def summarise(sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics of an evaluation by name, from the scores summed over all batches."""
        return {name: value / sums["examples"] for name, value in sums.items() if name != "examples"}


class EncoderOnly(Head):
    """No head: the hidden states and the pooled state."""

    task = "encoder"
    architecture = "BertModel"
    outputs = ("last_hidden_state", "pooler_output")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """INT64 `[batch, length]` each → FP32 `[batch, length, hidden]` and `[batch, hidden]`."""
        return self.bert(input_ids, attention_mask, token_type_ids)


class LinearHead(Head):
    """Dropout and a linear layer to `config.labels`: what sequence and token heads share."""

    outputs = ("logits",)
    own_keys = ("classifier.",)

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def classify(self, hidden: Tensor) -> Tensor:
        """FP32 `[…, hidden]` → logits, FP32 `[…, labels]`."""
        return self.classifier(self.dropout(hidden)).float()


def cross_entropy_sum(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """Summed cross-entropy in FP32; `[rows, labels]` and INT64 `[rows]` → a scalar."""
    weights = logits.new_tensor(options.class_weights) if options.class_weights else None
    smoothing = options.label_smoothing
    return F.cross_entropy(logits.float(), labels, weights, reduction="sum", label_smoothing=smoothing)


def label_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Summed loss and number of right labels; `[rows, labels]` and INT64 `[rows]`."""
    loss = float(cross_entropy_sum(logits, labels, LossOptions()))
    return {"loss": loss, "accuracy": float((logits.argmax(-1) == labels).sum())}


def cross_entropy_count(labels: Tensor, options: LossOptions) -> float:
    """The number of INT64 `[rows]` labels, or the sum of their class weights."""
    if options.class_weights:
        return float(torch.tensor(options.class_weights)[labels.cpu()].sum())
    return float(len(labels))
