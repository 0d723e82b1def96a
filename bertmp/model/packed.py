"""Packed batches: sequences concatenated without padding; no sequence attends to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertmp.data.tokenizer import Encoded
from bertmp.model.bert import MASK_BIAS, Dropout, Layout, attend, merge_heads, split_heads

MAX_PADDING_RATIO, MIN_PADDING = 0.25, 256
"""A bucket takes no further sequence if its padding would exceed this ratio to its tokens and this many."""


@dataclass(frozen=True)
class ShapeGrid:
    """Multiples that the shapes of packed batches are rounded to, which keeps the set of shapes small.

    Attributes:
        tokens: the number of tokens in a batch is padded to a multiple of this.
        bucket: so are the padded length of a bucket and, where possible, its number of sequences.
    """

    tokens: int = 1
    bucket: int = 1


EXACT = ShapeGrid()
"""No rounding."""

Bounds = Sequence[tuple[int, int]]
"""The sequences `[a, b)` of each bucket."""


@dataclass(frozen=True)
class LengthBucket:
    """Consecutive sequences of similar length, whose attention is computed as one padded batch.

    Attributes:
        first, last: its tokens are `[first, last)` of the packed batch.
        rows, longest: number of sequences, and the length that each is padded to.
        scatter_index: INT64 `[tokens]`, each token's index in the flattened padded bucket; None without
            padding.
        bias: FP32 `[rows, 1, 1, longest]`, as in `Padded`; None without padding.
    """

    first: int
    last: int
    rows: int
    longest: int
    scatter_index: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, first: int, lengths: Sequence[int], device: torch.device, grid: ShapeGrid) -> LengthBucket:
        """The bucket of sequences of these lengths that starts at token `first` of the packed batch."""
        sizes = torch.tensor(lengths)
        longest, last = max(lengths), first + sum(lengths)
        if longest > 1:
            longest += -longest % grid.bucket
        if min(lengths) == longest:
            return cls(first, last, len(lengths), longest, None, None)
        is_token = torch.arange(longest)[None] < sizes[:, None]
        scatter_index = is_token.flatten().nonzero()[:, 0].to(device)
        bias = ((~is_token).float() * MASK_BIAS)[:, None, None, :].to(device)
        return cls(first, last, len(lengths), longest, scatter_index, bias)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout, own: LengthBucket
    ) -> Tensor:
        """Attention within each sequence of the bucket.

        Args:
            query: `[query tokens, hidden]` of the packed batch.
            key, value: `[tokens, hidden]` of the packed batch.
            head_size: width of an attention head.
            dropout: applied to the attention probabilities; None outside training.
            own: the bucket of the same sequences in `query`.

        Returns:
            `[query tokens of the bucket, hidden]`.
        """
        query = split_heads(own._pad(query), head_size)
        key, value = (split_heads(self._pad(x), head_size) for x in (key, value))
        return own._unpad(merge_heads(attend(query, key, value, self.bias, dropout)))

    def _pad(self, x: Tensor) -> Tensor:
        """The bucket's rows of `[tokens, hidden]` → `[rows, longest, hidden]`, zero for padding."""
        x = x[self.first : self.last]
        if self.scatter_index is not None:
            x = x.new_zeros(self.rows * self.longest, x.shape[-1]).index_copy(0, self.scatter_index, x)
        return x.view(self.rows, self.longest, -1)

    def _unpad(self, x: Tensor) -> Tensor:
        """`[rows, longest, hidden]` → `[tokens, hidden]`."""
        x = x.flatten(0, 1)
        return x if self.scatter_index is None else x.index_select(0, self.scatter_index)


@dataclass(frozen=True)
class Packed(Layout):
    """Sequences concatenated without padding, so that operations per token compute nothing that is not used.

    On devices without a variable-length attention kernel, the queries, keys and values of one bucket at a
    time are padded for its attention.

    Attributes:
        lengths: number of tokens of each sequence.
        grid: the multiples that its shapes are rounded to.
        pad_tokens: number of padding tokens at the end of the batch.
        positions: INT64 `[tokens + pad_tokens]`, each token's position in its sequence.
        cls_positions: INT64 `[batch]`, index of each sequence's first token.
        cu_seqlens: INT32 `[batch + 1]`, cumulative lengths, as variable-length attention kernels take them.
        buckets: the sequences by similar length, in the batch's order.
    """

    lengths: tuple[int, ...]
    grid: ShapeGrid
    pad_tokens: int
    positions: Tensor
    cls_positions: Tensor
    cu_seqlens: Tensor
    buckets: tuple[LengthBucket, ...]

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, grid: ShapeGrid = EXACT, bounds: Bounds = ()
    ) -> Packed:
        """The layout of sequences of these lengths, each at least 1.

        Args:
            lengths: number of tokens of each sequence.
            device: where the batch is.
            grid: the multiples that its shapes are rounded to.
            bounds: of the buckets; none to choose them by `bucket_by_length`.
        """
        sizes = torch.tensor(lengths)
        ends = sizes.cumsum(0)
        starts = ends - sizes
        pad_tokens = -int(ends[-1]) % grid.tokens
        positions = F.pad(torch.arange(int(ends[-1])) - starts.repeat_interleave(sizes), (0, pad_tokens))
        cu_seqlens = F.pad(ends, (1, 0)).to(torch.int32)
        bounds = bounds or bucket_by_length(lengths, grid.bucket)
        buckets = tuple(LengthBucket.of(int(starts[a]), lengths[a:b], device, grid) for a, b in bounds)
        positions, starts, cu_seqlens = (part.to(device) for part in (positions, starts, cu_seqlens))
        return cls(tuple(lengths), grid, pad_tokens, positions, starts, cu_seqlens, buckets)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        return self.attend_queries(query, key, value, head_size, dropout, self)

    def attend_queries(
        self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout, queries: Packed
    ) -> Tensor:
        """Attention of a subset of the tokens to all tokens of their sequences.

        Args:
            query: `[query tokens, hidden]`.
            key, value: `[tokens, hidden]`.
            head_size: width of an attention head.
            dropout: applied to the attention probabilities; None outside training.
            queries: the layout of `query`, with the same sequences and buckets.

        Returns:
            `[query tokens, hidden]`.
        """
        if dropout is None and has_varlen_kernel(query, head_size):
            return self._attend_varlen(query, key, value, head_size, queries)
        pairs = zip(self.buckets, queries.buckets, strict=True)
        parts = [bucket.attend(query, key, value, head_size, dropout, own) for bucket, own in pairs]
        context = parts[0] if len(parts) == 1 else torch.cat(parts)
        return F.pad(context, (0, 0, 0, queries.pad_tokens)) if queries.pad_tokens else context

    def first(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.cls_positions)

    def pad(self, ids: Tensor) -> Tensor:
        return F.pad(ids, (0, self.pad_tokens)) if self.pad_tokens else ids

    def unpad(self, hidden: Tensor) -> Tensor:
        return hidden[: len(hidden) - self.pad_tokens]

    def _attend_varlen(
        self, query: Tensor, key: Tensor, value: Tensor, head_size: int, queries: Packed
    ) -> Tensor:
        """Variable-length flash attention, with an FP32 softmax (Dao 2023); CUDA only.

        torch's kernel has no dropout, so training with attention dropout uses the buckets instead.
        """
        from torch.nn.attention.varlen import varlen_attn

        query, key, value = (x.unflatten(-1, (-1, head_size)) for x in (query, key, value))
        max_query, max_key = max(queries.lengths), max(self.lengths)
        context = varlen_attn(query, key, value, queries.cu_seqlens, self.cu_seqlens, max_query, max_key)
        assert isinstance(context, Tensor)
        return context.flatten(-2)


@dataclass(frozen=True)
class QuerySubset(Layout):
    """The last block's layout where only some tokens' states are needed.

    Every token is a key and a value. Only the selected tokens are queries and pass through the feed-forward
    network: nothing reads the last block's output of the others.

    Attributes:
        tokens: the layout of all tokens.
        queries: the layout of the selected tokens, sorted by position.
        positions: those of `tokens`.
        query_index: INT64 `[selected + pad_tokens]`, index in the batch of each token of `queries`.
        order: INT64 `[selected]`, index in `queries` of each selected token, in the order asked for.
    """

    tokens: Packed
    queries: Packed
    positions: Tensor
    query_index: Tensor
    order: Tensor

    @classmethod
    def of(cls, tokens: Packed, selected: Tensor) -> QuerySubset:
        """The layout that returns the states of `selected`, INT64 `[selected]`, in that order.

        Each sequence must have at least one selected token.
        """
        query_index, by_position = torch.sort(selected)
        order = torch.empty_like(by_position)
        order[by_position] = torch.arange(len(selected), device=selected.device)
        lengths = torch.diff(torch.searchsorted(query_index, tokens.cu_seqlens.to(query_index.dtype)))
        ends = torch.tensor([bucket.rows for bucket in tokens.buckets]).cumsum(0).tolist()
        bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        queries = Packed.of(lengths.tolist(), selected.device, tokens.grid, bounds)
        return cls(tokens, queries, tokens.positions, F.pad(query_index, (0, queries.pad_tokens)), order)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, head_size: int, dropout: Dropout) -> Tensor:
        return self.tokens.attend_queries(query, key, value, head_size, dropout, self.queries)

    def first(self, hidden: Tensor) -> Tensor:
        return self.queries.first(hidden)

    def select_queries(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.query_index)

    def pad(self, ids: Tensor) -> Tensor:
        return self.tokens.pad(ids)

    def unpad(self, hidden: Tensor) -> Tensor:
        return hidden.index_select(0, self.order)


def bucket_by_length(lengths: Sequence[int], multiple: int = 1) -> list[tuple[int, int]]:
    """Splits a batch into buckets `[a, b)` of consecutive sequences with little padding to the longest.

    Without buckets, one long sequence would have all others padded to its length. A bucket ends where the
    next sequence would raise its padding above `MAX_PADDING_RATIO` of its tokens and above `MIN_PADDING`
    tokens, or above twice as many while its number of sequences is not a multiple of `multiple`.
    """
    bounds, start, tokens, longest = [], 0, 0, 0
    for row, length in enumerate(lengths):
        padded = max(longest, length) * (row - start + 1)
        padding = padded - tokens - length
        allowed = MIN_PADDING if (row - start) % multiple == 0 else 2 * MIN_PADDING
        if row > start and padding > max(allowed, MAX_PADDING_RATIO * (tokens + length)):
            bounds.append((start, row))
            start, tokens, longest = row, 0, 0
        tokens, longest = tokens + length, max(longest, length)
    return [*bounds, (start, len(lengths))]


def has_varlen_kernel(query: Tensor, head_size: int) -> bool:
    """Whether torch has a variable-length kernel for these queries on their device.

    `varlen_attn` is in torch 2.10 and later, for FP16 and BF16, GPUs of compute capability 8.0 and later, and
    head sizes that are multiples of 8 (torch's documentation; Dao 2023).
    """
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or head_size % 8:
        return False
    return find_spec("torch.nn.attention.varlen") is not None and (
        torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@dataclass(frozen=True)
class Batch:
    """Sequences concatenated without padding.

    Attributes:
        input_ids, token_type_ids: INT64 `[tokens]`.
        lengths: number of tokens of each sequence.
        targets: the targets of the head's loss by name; see the heads.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    lengths: tuple[int, ...]
    targets: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def layout(self, grid: ShapeGrid = EXACT) -> Packed:
        """The layout of the sequences, on the batch's device."""
        return Packed.of(self.lengths, self.input_ids.device, grid)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        targets = {name: tensor.to(device, non_blocking=True) for name, tensor in self.targets.items()}
        ids, types = (x.to(device, non_blocking=True) for x in (self.input_ids, self.token_type_ids))
        return Batch(ids, types, self.lengths, targets)


def pack(rows: Sequence[Encoded], targets: Mapping[str, Tensor]) -> Batch:
    """Concatenates encoded examples into one batch."""
    ids = np.fromiter((number for row in rows for number in row.input_ids), dtype=np.int64)
    types = np.fromiter((number for row in rows for number in row.token_type_ids), dtype=np.int64)
    return Batch(torch.from_numpy(ids), torch.from_numpy(types), tuple(len(row) for row in rows), targets)
