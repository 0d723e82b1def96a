"""Batches: every text once, in its place, with little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bertmp.data.tokenizer import Encoded
from bertmp.export.parity.inputs import Batch, answer_all, batches
from bertmp.export.parity.stage import ParityInputs


def inputs_of(lengths: list[int]) -> ParityInputs:
    encoded = [Encoded([row + 1] * length, [1] * length, False) for row, length in enumerate(lengths)]
    return ParityInputs([""] * len(lengths), None, None, encoded, pad_id=0)


@settings(deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 8))
def test_every_text_is_in_one_batch_of_texts_of_like_length(
    lengths: list[int], size: int, spread: int
) -> None:
    inputs = inputs_of(lengths)
    rows: list[int] = []
    for batch in batches(inputs, size, spread):
        held = batch.attention_mask.sum(axis=1)
        assert len(batch.rows) <= size
        assert held.tolist() == [lengths[row] for row in batch.rows]
        assert held.max() - held.min() <= spread
        assert batch.input_ids.shape[1] == held.max()
        assert (batch.input_ids[batch.attention_mask == 0] == 0).all()
        assert (batch.token_type_ids == batch.attention_mask).all()
        rows += batch.rows.tolist()
    assert sorted(rows) == list(range(len(lengths)))


@settings(deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=80))
def test_answers_come_back_in_the_files_order(lengths: list[int]) -> None:
    seen: list[int] = []

    def answer(batch: Batch) -> np.ndarray:
        return np.stack([batch.input_ids[:, 0], batch.attention_mask.sum(axis=1)], axis=1)

    logits = answer_all(inputs_of(lengths), answer, seen.append)
    assert logits.dtype == np.float32
    assert logits[:, 0].tolist() == list(range(1, len(lengths) + 1))
    assert logits[:, 1].tolist() == lengths
    assert sum(seen) == len(lengths)
