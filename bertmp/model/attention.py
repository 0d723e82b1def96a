"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2), over padded batches and over packed ones.

Everything else in BERT works on one token at a time and does not care how tokens are laid out; a layout is
what attention, positions and "the first token of each text" need to know.

The softmax runs in FP32 whatever the autocast of the device would do: its input is made FP32 explicitly,
because the CPU's autocast, unlike CUDA's, leaves softmax in the type it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bertmp.model.dropout import dropout as drop

MASKED = -10000.0
"""Added to the scores of padding. exp(-1e4) is 0 in FP32, and scores below -5e4 stay within FP16's range,
which the usual constants (-3.4e38, -65504) leave as soon as anything negative is added."""


WASTE, SMALL = 0.25, 256
"""A run of texts takes no further one where padding would be over this share of its tokens and this many."""

STEP = 32
"""Packed batches are brought to a multiple of this many tokens on a processor."""


class Layout(Protocol):
    """How the tokens of a batch are laid out; `…` below is `[batch, length]` or `[tokens]`."""

    @property
    def positions(self) -> Tensor:
        """INT64, broadcastable to `…`: each token's place in its text."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: float) -> Tensor:
        """Attention within each text; `[…, hidden]` each → `[…, hidden]`."""

    def first(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → the first token's of each text, `[batch, hidden]`."""

    def fill(self, ids: Tensor) -> Tensor:
        """INT64 `…`, with the tokens added that bring the batch to a size that comes again."""

    def cut(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` without those tokens."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """softmax(query · keyᵀ / √head_size + bias) · value.

    Args:
        query, key, value: `[batch, heads, length, head_size]`.
        bias: FP32 `[batch, 1, 1, length]`, or None where there is no padding.
        dropout: rate at which attention probabilities are dropped; 0 outside training.

    Returns:
        `[batch, heads, length, head_size]` in the type the matrix products run in.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    scores = scores.float()
    probabilities = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    if dropout:
        probabilities = drop(probabilities, dropout)
    return torch.matmul(probabilities, value)


def _split(x: Tensor, head_size: int) -> Tensor:
    """`[batch, length, hidden]` → `[batch, heads, length, head_size]`."""
    return x.unflatten(-1, (-1, head_size)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
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

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: float) -> Tensor:
        query, key, value = (_split(x, head_size) for x in (query, key, value))
        return _merge(attend(query, key, value, self.bias, dropout))

    def first(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]

    def fill(self, ids: Tensor) -> Tensor:
        return ids

    def cut(self, hidden: Tensor) -> Tensor:
        return hidden


@dataclass(frozen=True)
class Run:
    """Neighbouring texts of similar length, whose attention scores are computed at once.

    Attributes:
        first, last: their tokens are `[first, last)` of the batch.
        rows, longest: how many texts, and the tokens of the longest.
        slots: INT64 `[tokens]`, each token's place in the padded run; None where all lengths are equal.
        bias: FP32 `[rows, 1, 1, longest]`, as in `Padded`; None where all lengths are equal.
    """

    first: int
    last: int
    rows: int
    longest: int
    slots: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, first: int, lengths: Sequence[int], device: torch.device) -> Run:
        """The run of texts of these lengths whose first token is number `first` of the batch."""
        sizes = torch.tensor(lengths)
        longest, last = max(lengths), first + sum(lengths)
        if min(lengths) == longest:
            return cls(first, last, len(lengths), longest, None, None)
        kept = torch.arange(longest)[None] < sizes[:, None]
        slots = kept.flatten().nonzero()[:, 0].to(device)
        bias = ((~kept).float() * MASKED)[:, None, None, :].to(device)
        return cls(first, last, len(lengths), longest, slots, bias)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: float) -> Tensor:
        """The run's part of `Packed.attend`."""
        query, key, value = (_split(self._pad(x), head_size) for x in (query, key, value))
        context = _merge(attend(query, key, value, self.bias, dropout)).flatten(0, 1)
        return context if self.slots is None else context.index_select(0, self.slots)

    def _pad(self, x: Tensor) -> Tensor:
        """The run's rows of `[tokens, hidden]` → `[rows, longest, hidden]`, zeros where there is no token."""
        x = x[self.first : self.last]
        if self.slots is not None:
            x = x.new_zeros(self.rows * self.longest, x.shape[-1]).index_copy(0, self.slots, x)
        return x.view(self.rows, self.longest, -1)


@dataclass(frozen=True)
class Packed:
    """Texts end to end, without padding: no per-token operation computes anything in vain.

    Only attention scores are padded for a moment, run by run, on devices without a variable-length
    attention kernel. Texts never attend to each other.

    On a processor every new number of tokens has the matrix library make, and keep, new kernels for each of
    the products: 4 MB a step in a small BERT. So up to `STEP` - 1 tokens are added behind the texts.

    Attributes:
        lengths: tokens of each text.
        filler: tokens added behind the texts.
        positions: INT64 `[tokens + filler]`, each token's place in its text.
        starts: INT64 `[batch]`, each text's first token.
        bounds: INT32 `[batch + 1]`, the running sum of lengths, as variable-length kernels want it.
        runs: the texts in runs of similar length, in the batch's order.
    """

    lengths: tuple[int, ...]
    filler: int
    positions: Tensor
    starts: Tensor
    bounds: Tensor
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packed:
        """The layout of texts of these lengths, each at least 1."""
        sizes = torch.tensor(lengths)
        ends = sizes.cumsum(0)
        starts = ends - sizes
        filler = -int(ends[-1]) % STEP if device.type == "cpu" else 0
        positions = F.pad(torch.arange(int(ends[-1])) - starts.repeat_interleave(sizes), (0, filler))
        bounds = F.pad(ends, (1, 0)).to(torch.int32)
        cuts = split_by_length(lengths)
        runs = tuple(Run.of(int(starts[a]), lengths[a:b], device) for a, b in cuts)
        return cls(tuple(lengths), filler, positions.to(device), starts.to(device), bounds.to(device), runs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: float) -> Tensor:
        if _has_varlen_kernel(query) and not dropout:
            return self._attend_varlen(query, key, value, head_size)
        parts = [run.attend(query, key, value, head_size, dropout) for run in self.runs]
        context = parts[0] if len(parts) == 1 else torch.cat(parts)
        return F.pad(context, (0, 0, 0, self.filler)) if self.filler else context

    def first(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.starts)

    def fill(self, ids: Tensor) -> Tensor:
        return F.pad(ids, (0, self.filler)) if self.filler else ids

    def cut(self, hidden: Tensor) -> Tensor:
        return hidden[: len(hidden) - self.filler]

    def _attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, head_size: int) -> Tensor:
        """Flash attention over packed texts, softmax accumulated in FP32 (Dao 2023); CUDA alone.

        Written to torch's documented interface; it has no dropout, so training with attention dropout
        takes the other way.
        """
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (x.unflatten(-1, (-1, head_size)) for x in (query, key, value))
        longest = max(self.lengths)
        context = varlen_attn(query, key, value, self.bounds, self.bounds, longest, longest)
        assert isinstance(context, Tensor)
        return context.flatten(-2)


def split_by_length(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cuts a batch into runs `[a, b)` of texts in which padding to the longest wastes little.

    One long text would otherwise have every other one padded to its length. A run ends where the next text
    would bring its padding over `WASTE` of its tokens and over `SMALL` tokens.
    """
    cuts, start, tokens, longest = [], 0, 0, 0
    for row, length in enumerate(lengths):
        padded = max(longest, length) * (row - start + 1)
        padding = padded - tokens - length
        if row > start and padding > max(SMALL, WASTE * (tokens + length)):
            cuts.append((start, row))
            start, tokens, longest = row, 0, 0
        tokens, longest = tokens + length, max(longest, length)
    return [*cuts, (start, len(lengths))]


def _has_varlen_kernel(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
