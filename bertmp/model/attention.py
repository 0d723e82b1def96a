"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), over padded batches and over packed ones.

All other operations of BERT work on one token at a time. Only attention, the positions and the selection of
`[CLS]` depend on how the tokens of a batch are laid out; a `Layout` provides these three.

The softmax always runs in FP32. Its input is converted explicitly because autocast on the CPU, unlike on
CUDA, does not promote softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Dropout = Callable[[Tensor], Tensor] | None
"""Applied to the attention probabilities; None outside training."""

MASK_BIAS = -10000.0
"""Added to the attention scores of padding. exp(-1e4) is 0 in FP32, and the sum stays finite in FP16 for
scores down to -5e4. The usual constants (-3.4e38, -65504) overflow FP16 with any negative score."""


class Layout:
    """How the tokens of a batch are laid out; `…` below is `[batch, length]` or `[tokens]`.

    Attributes:
        positions: INT64, broadcastable to `…`: each token's position in its sequence.
    """

    positions: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        """Attention within each sequence; `[…, hidden]` each → `[…, hidden]`."""
        raise NotImplementedError

    def first(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → the first token of each sequence, `[batch, hidden]`."""
        raise NotImplementedError

    def select_queries(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → the tokens whose output a block computes: the queries of `attend`; here all."""
        return hidden

    def pad(self, ids: Tensor) -> Tensor:
        """INT64 `…`, with padding tokens added where the layout wants a fixed set of sizes."""
        return ids

    def unpad(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` without the tokens that `pad` added."""
        return hidden


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: Dropout) -> Tensor:
    """softmax(query · keyᵀ / √head_size + bias) · value.

    Args:
        query, key, value: `[batch, heads, length, head_size]`.
        bias: FP32 `[batch, 1, 1, length]`, or None where there is no padding.
        dropout: applied to the attention probabilities; None outside training.

    Returns:
        `[batch, heads, length, head_size]` in the dtype of the matrix products.
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
class Padded(Layout):
    """Sequences padded to one length, as in the exported graph and in Hugging Face's models.

    Attributes:
        attention_mask: INT64 `[batch, length]`, 1 for tokens and 0 for padding.
        positions: INT64 `[1, length]`.
        bias: FP32 `[batch, 1, 1, length]`: 0 for tokens, `MASK_BIAS` for padding.
    """

    attention_mask: Tensor
    positions: Tensor
    bias: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> Padded:
        """The layout of an attention mask, INT64 `[batch, length]`."""
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None, :]
        bias = (1.0 - attention_mask[:, None, None, :].float()) * MASK_BIAS
        return cls(attention_mask, positions, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        query, key, value = (split_heads(x, head_size) for x in (query, key, value))
        return merge_heads(attend(query, key, value, self.bias, dropout))

    def first(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]
