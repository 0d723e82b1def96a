"""Batches: every example once, in its place, with little padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bertmp.data.tokenizer import Encoded
from bertmp.export.parity.stage import ParityInputs, answer_all, batches


def inputs_of(lengths: list[int]) -> ParityInputs:
    encoded = [Encoded([row + 1] * length, [1] * length, False) for row, length in enumerate(lengths)]
    return ParityInputs([""] * len(lengths), None, None, encoded, pad_id=0)


@settings(deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 8))
def test_batches_hold_every_example_once_with_bounded_padding(
    lengths: list[int], size: int, spread: int
) -> None:
    inputs = inputs_of(lengths)
    rows: list[int] = []
    for batch_rows, feed in batches(inputs, size, spread):
        held = feed["attention_mask"].sum(axis=1)
        assert len(batch_rows) <= size
        assert held.tolist() == [lengths[row] for row in batch_rows]
        assert held.max() - held.min() <= spread
        assert feed["input_ids"].shape[1] == held.max()
        assert (feed["input_ids"][feed["attention_mask"] == 0] == 0).all()
        assert (feed["token_type_ids"] == feed["attention_mask"]).all()
        rows += batch_rows
    assert sorted(rows) == list(range(len(lengths)))


@settings(deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=80))
def test_answers_keep_the_order_of_the_file(lengths: list[int]) -> None:
    seen: list[int] = []

    def answer(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": np.stack([feed["input_ids"][:, 0], feed["attention_mask"].sum(axis=1)], axis=1)}

    logits = answer_all(inputs_of(lengths), answer, seen.append).logits
    assert logits.dtype == np.float32
    assert logits[:, 0].tolist() == list(range(1, len(lengths) + 1))
    assert logits[:, 1].tolist() == lengths
    assert sum(seen) == len(lengths)
