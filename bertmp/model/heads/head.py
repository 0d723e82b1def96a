"""What every head has: graph outputs for the later stages, a loss and scores for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bertmp.model.batch import Batch
from bertmp.model.bert import Bert
from bertmp.model.config import BertConfig
from bertmp.model.packed import QuerySubset


@dataclass(frozen=True)
class LossOptions:
    """How a loss is taken.

    Attributes:
        label_smoothing: share of the target's weight that is spread over all classes.
        class_weights: weight of each class's examples; empty where all weigh the same.
    """

    label_smoothing: float = 0.0
    class_weights: Sequence[float] = ()


class Head(nn.Module):
    """A BERT with something on top.

    `forward` takes INT64 `[batch, length]` ids, mask and segments and returns what the graph's outputs are;
    training goes through `sums`, which reads packed texts.

    A batch's loss is the sum over `losses` of `sums / counts`. Sums and counts are apart so that several
    micro-batches or processes add up to exactly the loss of one large batch.

    Attributes:
        task: the head's name on the command line.
        architecture: Hugging Face's name of the class, as `config.json` has it.
        outputs: the names of the graph's outputs, in the order in which `forward` returns them.
        own_keys: prefixes of the weights that belong to the head, not to BERT.
        losses: the names of the loss's parts.
        problem: Hugging Face's `problem_type`, which tells heads of one architecture apart; empty where
            there is one alone.
        classes: whether the logits stand for the labels of the configuration.
        pooling: whether the head reads the pooled state.
        tied: weights that checkpoints may hold twice: the other name, and ours.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    own_keys: ClassVar[tuple[str, ...]] = ()
    losses: ClassVar[tuple[str, ...]] = ()
    problem: ClassVar[str] = ""
    classes: ClassVar[bool] = False
    pooling: ClassVar[bool] = True
    tied: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config, self.pooling)

    def read(self, batch: Batch) -> Tensor:
        """The states of a packed batch's tokens, FP32 `[tokens, hidden]`."""
        return self.bert.encode(batch.input_ids, batch.token_type_ids, batch.layout())

    def read_at(self, batch: Batch, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The pooled states of a packed batch and those of some tokens.

        No other token's state is computed in the last block, unless someone looks on (`Bert.all_positions`).

        Args:
            wanted: INT64 `[wanted]`, which tokens; none of them the first of a text.

        Returns:
            FP32 `[batch, hidden]` and `[wanted, hidden]`.
        """
        layout = batch.layout()
        places = layout.cls_positions if wanted is None else torch.cat([layout.cls_positions, wanted])
        last = None if self.bert.all_positions else QuerySubset.of(layout, places)
        hidden = self.bert.encode(batch.input_ids, batch.token_type_ids, layout, last)
        if last is None:
            hidden = hidden.index_select(0, places)
        return self.bert.pool(hidden[: len(batch)]), hidden[len(batch) :]

    def sums(self, batch: Batch, options: LossOptions) -> Tensor:
        """The summed loss of each part, FP32 `[losses]`."""
        raise NotImplementedError(f"{type(self).__name__} has no loss: it cannot be trained")

    def counts(self, batch: Batch, options: LossOptions) -> list[float]:
        """How many terms (or how much weight) each part's sum has; needs no forward pass."""
        return [float(len(batch))]

    def score(self, batch: Batch) -> dict[str, float]:
        """Sums over the batch from which `summarise` makes the evaluation's figures."""
        raise NotImplementedError(f"{type(self).__name__} has no evaluation")

    @staticmethod
    def summarise(sums: Mapping[str, float]) -> dict[str, float]:
        """The figures of an evaluation, by name, from the summed scores of all batches."""
        return {name: value / sums["examples"] for name, value in sums.items() if name != "examples"}


class EncoderOnly(Head):
    """No head: the encoder's states and the pooled one."""

    task = "encoder"
    architecture = "BertModel"
    outputs = ("last_hidden_state", "pooler_output")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """INT64 `[batch, length]` each → FP32 `[batch, length, hidden]` and `[batch, hidden]`."""
        return self.bert(input_ids, attention_mask, token_type_ids)
