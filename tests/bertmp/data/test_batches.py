"""Batches: their order, their division and their padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.data.batches import close_batches, length_sorted_batches, pad_batch, shuffled_batches, split_batch
from bertmp.data.tokenizer import Encoded

ROWS = [Encoded([2, 7, 3], [0, 0, 1], False), Encoded([2, 3], [0, 0], False)]


def test_pad_batch_without_shape_pads_to_the_longest() -> None:
    batch = pad_batch(ROWS, pad_id=9)
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(values.dtype == np.int64 for values in batch.values())
    assert batch["input_ids"].tolist() == [[2, 7, 3], [2, 3, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]


def test_pad_batch_with_shape_adds_rows_and_columns_of_padding() -> None:
    batch = pad_batch(ROWS, pad_id=9, shape=(3, 4))
    assert batch["input_ids"].tolist() == [[2, 7, 3, 9], [2, 3, 9, 9], [9, 9, 9, 9]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 2, 0]


def test_pad_batch_row_longer_than_shape_raises() -> None:
    with pytest.raises(ValueError, match="could not broadcast"):
        pad_batch(ROWS, pad_id=9, shape=(2, 2))


def test_shuffled_batches_epoch_covers_every_row_once() -> None:
    lengths = np.arange(1, 24)
    first, again, other = (shuffled_batches(lengths, 4, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert sorted(np.concatenate(first).tolist()) == list(range(23))
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in again]
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in other]


def test_length_sorted_batches_start_with_the_longest() -> None:
    assert [rows.tolist() for rows in length_sorted_batches([3, 9, 5], 2)] == [[1, 2], [0]]


def test_split_batch_short_batch_leaves_parts_empty() -> None:
    assert [part.tolist() for part in split_batch(np.array([4, 7]), 3)] == [[4], [7], []]


@given(st.lists(st.integers(1, 60)), st.integers(1, 9), st.integers(0, 5), st.none() | st.integers(1, 90))
def test_close_batches_keep_every_limit_and_every_row(
    lengths: list[int], rows: int, spread: int, tokens: int | None
) -> None:
    batches = list(close_batches(lengths, rows, spread, tokens))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest, shortest = max(lengths[row] for row in batch), min(lengths[row] for row in batch)
        assert len(batch) <= rows
        assert longest - shortest <= spread
        assert tokens is None or len(batch) == 1 or len(batch) * longest <= tokens


def test_close_batches_are_as_large_as_the_limits_allow() -> None:
    assert list(close_batches([3, 9, 3, 4, 3], rows=8, spread=1)) == [[0, 2, 4, 3], [1]]
    assert list(close_batches([3, 9, 3, 4, 3], rows=3, spread=9)) == [[0, 2, 4], [3, 1]]
    assert list(close_batches([3, 9, 3, 4, 3], rows=8, spread=9, tokens=9)) == [[0, 2, 4], [3], [1]]
