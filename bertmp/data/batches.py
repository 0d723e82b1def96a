"""Batching: which examples go together, by length, and padding for consumers of padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bertmp.data.tokenizer import Encoded

POOL = 4
"""Batches are taken from pools of this many batches, sorted by length within a pool, so that sequences of a
batch have similar lengths and attention needs less padding. Larger pools are slightly faster, but make
unbalanced batches where length correlates with the label."""


def shuffled_batches(
    lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The rows of each batch of an epoch, INT64 `[≤ batch_size]` each; every row occurs once.

    A pure function of its arguments, so that a resumed run sees the same batches.
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


def length_sorted_batches(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows in batches of similar length, longest first, for evaluation."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def close_batches(
    lengths: Sequence[int], rows: int, spread: int, tokens: int | None = None
) -> Iterator[list[int]]:
    """Rows from short to long in batches of almost equal length, for consumers of padded batches.

    Args:
        lengths: tokens of each row.
        rows: the most rows of a batch.
        spread: the most padding tokens that a row may get.
        tokens: the most tokens of a batch, padding included; a row that is longer is a batch of its own.

    Yields:
        The rows of a batch; every row occurs once.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order):
            longest, count = lengths[order[end]], end + 1 - start
            fits = count <= rows and (tokens is None or count * longest <= tokens)
            if fits and longest <= lengths[order[start]] + spread:
                continue
        yield order[start:end]
        start = end


def split_batch(rows: np.ndarray, parts: int) -> list[np.ndarray]:
    """The rows of a batch for each of `parts` micro-batches or processes; some may be empty."""
    return [rows[part::parts] for part in range(parts)]


def pad_batch(
    rows: Sequence[Encoded], pad_id: int, shape: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Encoded examples as a padded batch.

    Args:
        rows: the examples.
        pad_id: id of the padding token.
        shape: batch size and length, at least those of `rows`; None to pad to the longest example.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids`, INT64 `[batch, length]`.
    """
    shape = shape or (len(rows), max(map(len, rows)))
    ids, mask, types = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, encoded in enumerate(rows):
        ids[row, : len(encoded)] = encoded.input_ids
        mask[row, : len(encoded)] = 1
        types[row, : len(encoded)] = encoded.token_type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
