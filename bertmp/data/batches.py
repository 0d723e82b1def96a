"""Which examples go together: grouped by length, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOL = 4
"""Batches are cut from pools of this many batches, sorted by length within the pool. Texts of a batch are
then of similar length, which spares attention some padding; larger pools are a little faster, but where
length goes with the label they make one-sided batches."""


def epoch_batches(
    lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
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


def by_length(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows in batches of similar length, longest first: for evaluation, where order does not matter."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def shares(rows: np.ndarray, parts: int) -> list[np.ndarray]:
    """A batch's rows dealt out to `parts` micro-batches or processes; a short batch leaves some empty."""
    return [rows[part::parts] for part in range(parts)]
