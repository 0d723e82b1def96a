"""Packed batches: texts end to end, without padding, none of which attends to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bertmp.model.attention import MASKED, Dropout, attend, merge_heads, split_heads

WASTE, SMALL = 0.25, 256
"""A run of texts takes no further one where padding would be over this share of its tokens and this many."""

STEP, GRID = 32, 8
"""On a processor, packed batches are brought to a multiple of `STEP` tokens, and runs to one of `GRID` texts
and `GRID` tokens a text: see `Packed`."""


@dataclass(frozen=True)
class Run:
    """Neighbouring texts of similar length, whose attention scores are computed at once.

    Attributes:
        first, last: their tokens are `[first, last)` of the batch.
        rows, longest: how many texts, and how many tokens each is padded to.
        slots: INT64 `[tokens]`, each token's place in the padded run; None where there is no padding.
        bias: FP32 `[rows, 1, 1, longest]`, as in `Padded`; None where there is no padding.
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
        if device.type == "cpu" and longest > 1:
            longest += -longest % GRID
        if min(lengths) == longest:
            return cls(first, last, len(lengths), longest, None, None)
        kept = torch.arange(longest)[None] < sizes[:, None]
        slots = kept.flatten().nonzero()[:, 0].to(device)
        bias = ((~kept).float() * MASKED)[:, None, None, :].to(device)
        return cls(first, last, len(lengths), longest, slots, bias)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_size: int,
        dropout: Dropout,
        asking: Run,
    ) -> Tensor:
        """The run's part of a layout's `attend`.

        Args:
            query: `[asking tokens, hidden]`.
            key, value: `[tokens, hidden]`.
            asking: the same texts, in `query`.
        """
        query = split_heads(asking._pad(query), head_size)
        key, value = (split_heads(self._pad(x), head_size) for x in (key, value))
        return asking._unpad(merge_heads(attend(query, key, value, self.bias, dropout)))

    def _unpad(self, x: Tensor) -> Tensor:
        """`[rows, longest, hidden]` → the tokens among them, `[tokens, hidden]`."""
        x = x.flatten(0, 1)
        return x if self.slots is None else x.index_select(0, self.slots)

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

    On a processor every new shape has the matrix library make, and keep, a new kernel for the product: 4 MB
    a step in a small BERT. So up to `STEP` - 1 tokens are added behind the texts, and the shapes of runs lie
    on a grid.

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
    def of(
        cls, lengths: Sequence[int], device: torch.device, cuts: Sequence[tuple[int, int]] | None = None
    ) -> Packed:
        """The layout of texts of these lengths, each at least 1.

        Args:
            cuts: the runs' texts `[a, b)`; None for those that waste little.
        """
        sizes = torch.tensor(lengths)
        ends = sizes.cumsum(0)
        starts = ends - sizes
        filler = -int(ends[-1]) % STEP if device.type == "cpu" else 0
        positions = F.pad(torch.arange(int(ends[-1])) - starts.repeat_interleave(sizes), (0, filler))
        bounds = F.pad(ends, (1, 0)).to(torch.int32)
        if cuts is None:
            cuts = split_by_length(lengths, GRID if device.type == "cpu" else 1)
        runs = tuple(Run.of(int(starts[a]), lengths[a:b], device) for a, b in cuts)
        return cls(tuple(lengths), filler, positions.to(device), starts.to(device), bounds.to(device), runs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        return self.answer(query, key, value, head_size, dropout, self)

    def answer(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_size: int,
        dropout: Dropout,
        asking: Packed,
    ) -> Tensor:
        """Attention in which only some tokens ask, `asking` saying which text each is from.

        `[asking tokens, hidden]`, `[tokens, hidden]` twice → `[asking tokens, hidden]`.
        """
        if _has_varlen_kernel(query) and dropout is None:
            return self._answer_varlen(query, key, value, head_size, asking)
        parts = [
            run.attend(query, key, value, head_size, dropout, own)
            for run, own in zip(self.runs, asking.runs, strict=True)
        ]
        context = parts[0] if len(parts) == 1 else torch.cat(parts)
        return F.pad(context, (0, 0, 0, asking.filler)) if asking.filler else context

    def first(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.starts)

    def ask(self, hidden: Tensor) -> Tensor:
        return hidden

    def fill(self, ids: Tensor) -> Tensor:
        return F.pad(ids, (0, self.filler)) if self.filler else ids

    def cut(self, hidden: Tensor) -> Tensor:
        return hidden[: len(hidden) - self.filler]

    def _answer_varlen(
        self, query: Tensor, key: Tensor, value: Tensor, head_size: int, asking: Packed
    ) -> Tensor:
        """Flash attention over packed texts, softmax accumulated in FP32 (Dao 2023); CUDA alone.

        Written to torch's documented interface; it has no dropout, so training with attention dropout
        takes the other way.
        """
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (x.unflatten(-1, (-1, head_size)) for x in (query, key, value))
        most, longest = max(asking.lengths), max(self.lengths)
        context = varlen_attn(query, key, value, asking.bounds, self.bounds, most, longest)
        assert isinstance(context, Tensor)
        return context.flatten(-2)


@dataclass(frozen=True)
class Narrowed:
    """A packed batch of which only some tokens' states are wanted: the last block's layout.

    Every token is a key and a value there; only the wanted ones are queries and go through the
    feed-forward network, which nothing after them would have read of the others.

    Attributes:
        whole: the layout of all tokens.
        asking: that of the wanted ones, text by text.
        places: INT64 `[wanted + filler]`, where the tokens of `asking` stand in `whole`.
        order: INT64 `[wanted]`, where each wanted token stands in `asking`.
    """

    whole: Packed
    asking: Packed
    places: Tensor
    order: Tensor

    @classmethod
    def of(cls, whole: Packed, wanted: Tensor) -> Narrowed:
        """The layout that gives the states of tokens `wanted`, INT64 `[wanted]`, in that order.

        Each text must have at least one among them.
        """
        places, by_place = torch.sort(wanted)
        order = torch.empty_like(by_place)
        order[by_place] = torch.arange(len(wanted), device=wanted.device)
        counts = torch.diff(torch.searchsorted(places, whole.bounds.to(places.dtype)))
        cuts: list[tuple[int, int]] = []
        for run in whole.runs:
            start = cuts[-1][1] if cuts else 0
            cuts.append((start, start + run.rows))
        asking = Packed.of(counts.tolist(), wanted.device, cuts)
        return cls(whole, asking, F.pad(places, (0, asking.filler)), order)

    @property
    def positions(self) -> Tensor:
        return self.whole.positions

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        return self.whole.answer(query, key, value, head_size, dropout, self.asking)

    def first(self, hidden: Tensor) -> Tensor:
        return self.asking.first(hidden)

    def ask(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.places)

    def fill(self, ids: Tensor) -> Tensor:
        return self.whole.fill(ids)

    def cut(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.order)


def split_by_length(lengths: Sequence[int], grid: int = 1) -> list[tuple[int, int]]:
    """Cuts a batch into runs `[a, b)` of texts in which padding to the longest wastes little.

    One long text would otherwise have every other one padded to its length. A run ends where the next text
    would bring its padding over `WASTE` of its tokens and over `SMALL` tokens; where it has no multiple of
    `grid` texts yet, over twice as many.
    """
    cuts, start, tokens, longest = [], 0, 0, 0
    for row, length in enumerate(lengths):
        padded = max(longest, length) * (row - start + 1)
        padding = padded - tokens - length
        small = SMALL if (row - start) % grid == 0 else 2 * SMALL
        if row > start and padding > max(small, WASTE * (tokens + length)):
            cuts.append((start, row))
            start, tokens, longest = row, 0, 0
        tokens, longest = tokens + length, max(longest, length)
    return [*cuts, (start, len(lengths))]


def _has_varlen_kernel(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
