"""The arithmetic that training must do, counted from the model's shape.

Padding and recomputation are not work. The last block counts whole, although `bertmp train` leaves out what
nobody reads of it.

A matrix product of `[n, k]` by `[k, m]` is 2·n·k·m operations, and its backward pass twice that again.
Activations, LayerNorm, softmax, embeddings and the optimizer are left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bertmp.model.config import BertConfig

TRAINING = 6
"""Operations per weight and token: 2 forward, 4 backward."""


@dataclass(frozen=True)
class Work:
    """What went through a model.

    Attributes:
        texts: sequences.
        tokens: real tokens in all.
        squares: the sum of the squared lengths, which attention's scores cost.
    """

    texts: float
    tokens: float
    squares: float

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Work:
        """The work of texts of these lengths, once."""
        return cls(len(lengths), sum(lengths), sum(length * length for length in lengths))

    def times(self, factor: float) -> Work:
        """The same mixture of texts, more or less of it."""
        return Work(self.texts * factor, self.tokens * factor, self.squares * factor)


def encoder_flops(config: BertConfig, work: Work) -> float:
    """Blocks and pooler, forward and backward."""
    width, wide = config.hidden_size, config.intermediate_size
    weights = config.num_hidden_layers * (4 * width * width + 2 * width * wide)
    # Scores and their product with the values: 2·length²·hidden each.
    attention = config.num_hidden_layers * (TRAINING // 2) * 4 * width * work.squares
    return TRAINING * weights * work.tokens + attention + TRAINING * width * width * work.texts


def classifier_flops(config: BertConfig, work: Work, labels: int) -> float:
    """A classifier's fine-tuning."""
    return encoder_flops(config, work) + TRAINING * config.hidden_size * labels * work.texts


def pretraining_flops(config: BertConfig, work: Work, masked: float) -> float:
    """MLM and NSP; `masked` positions in all go through the transform and the vocabulary's projection."""
    width = config.hidden_size
    head = TRAINING * masked * width * (width + config.vocab_size) + TRAINING * 2 * width * work.texts
    return encoder_flops(config, work) + head
