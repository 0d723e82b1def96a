"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), over padded batches and over packed ones.

Everything else in BERT works on one token at a time and does not care how tokens are laid out; a layout is
what attention, positions and "the first token of each text" need to know.

The softmax runs in FP32 whatever the autocast of the device would do: its input is made FP32 explicitly,
because the CPU's autocast, unlike CUDA's, leaves softmax in the type it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Dropout = Callable[[Tensor], Tensor] | None
"""Applied to the attention probabilities; None outside training."""

MASKED = -10000.0
"""Added to the scores of padding. exp(-1e4) is 0 in FP32, and scores below -5e4 stay within FP16's range,
which the usual constants (-3.4e38, -65504) leave as soon as anything negative is added."""


class Layout(Protocol):
    """How the tokens of a batch are laid out; `…` below is `[batch, length]` or `[tokens]`."""

    @property
    def positions(self) -> Tensor:
        """INT64, broadcastable to `…`: each token's place in its text."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        """Attention within each text; `[…, hidden]` each → `[…, hidden]`."""

    def first(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → the first token's of each text, `[batch, hidden]`."""

    def ask(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → the tokens for which a block computes its output; they alone ask in `attend`."""

    def fill(self, ids: Tensor) -> Tensor:
        """INT64 `…`, with the tokens added that bring the batch to a size that comes again."""

    def cut(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` without those tokens."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: Dropout) -> Tensor:
    """softmax(query · keyᵀ / √head_size + bias) · value.

    Args:
        query, key, value: `[batch, heads, length, head_size]`.
        bias: FP32 `[batch, 1, 1, length]`, or None where there is no padding.
        dropout: of the attention probabilities; None outside training.

    Returns:
        `[batch, heads, length, head_size]` in the type the matrix products run in.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    scores = scores.float()
    probabilities = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return torch.matmul(probabilities, value)


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """`[batch, length, hidden]` → `[batch, heads, length, head_size]`."""
    return x.unflatten(-1, (-1, head_size)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[batch, heads, length, head_size]` → `[batch, length, hidden]`."""
    return x.transpose(1, 2).flatten(-2)


@dataclass(frozen=True)
class Padded:
    """Texts filled up to one length: what is exported, and what Hugging Face's models read.

    Attributes:
        attention_mask: INT64 `[batch, length]`, 1 for tokens and 0 for padding.
        positions: INT64 `[1, length]`.
        bias: FP32 `[batch, 1, 1, length]`: 0 for tokens, `MASKED` for padding.
    """

    attention_mask: Tensor
    positions: Tensor
    bias: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> Padded:
        """The layout that a mask describes."""
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None, :]
        bias = (1.0 - attention_mask[:, None, None, :].float()) * MASKED
        return cls(attention_mask, positions, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        query, key, value = (split_heads(x, head_size) for x in (query, key, value))
        return merge_heads(attend(query, key, value, self.bias, dropout))

    def first(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]

    def ask(self, hidden: Tensor) -> Tensor:
        return hidden

    def fill(self, ids: Tensor) -> Tensor:
        return ids

    def cut(self, hidden: Tensor) -> Tensor:
        return hidden
