"""Examples to batches: grouped by length, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bertmp.tokenizer import Encoded

POOL = 50
"""Batches are cut from pools of this many batches, sorted by length within the pool: little padding, and
still a random order over the epoch."""


@dataclass(frozen=True)
class Batch:
    """What the model reads at once.

    Attributes:
        input_ids, attention_mask, token_type_ids: INT64 `[batch, length]`.
        tokens: tokens that are not padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        ids, mask, types = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.input_ids, self.attention_mask, self.token_type_ids)
        )
        return Batch(ids, mask, types, self.tokens)


def pad(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """One batch, padded to its longest row."""
    length = max(len(row) for row in rows)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    types = np.zeros((len(rows), length), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row.input_ids
        types[number, : len(row)] = row.token_type_ids
        mask[number, : len(row)] = 1
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types), int(mask.sum()))


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of each batch of one epoch, INT64 `[≤ batch_size]` each; every row occurs once.

    A pure function of its arguments, so that a resumed run finds the batches it would have seen.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    sizes = np.asarray(lengths)
    batches: list[np.ndarray] = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[number] for number in rng.permutation(len(batches))]


def by_length(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """Rows in batches of similar length, longest first: for evaluation, where order does not matter."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
