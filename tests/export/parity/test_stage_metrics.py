"""Measures as pure functions: what is counted, and how numbers that are not finite behave."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bertmp.export.parity.stage import StageOutput
from bertmp.export.parity.stage_metrics import (
    answers_of,
    measure,
    probabilities_of,
)

LOGITS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12),
    elements=st.floats(-50, 50, width=32),
)


def output(rows: list[list[float]], **more: object) -> StageOutput:
    return StageOutput(np.array(rows, np.float32), **more)  # type: ignore[arg-type]


def test_errors_are_over_all_logits_and_per_text() -> None:
    reference, answer = output([[1, 0], [0, 2]]), output([[1, 0.5], [0.25, 2]])
    metrics = measure(reference, answer)
    assert metrics.max_error == 0.5
    assert metrics.mean_error == pytest.approx(0.75 / 4)
    assert metrics.row_errors.tolist() == [0.5, 0.25]
    assert metrics.margins.tolist() == [1, 2]
    assert metrics.accuracy is None
    assert metrics.accuracy_points is None


def test_a_flip_within_twice_its_own_error_is_explained() -> None:
    metrics = measure(output([[1.0, 0.9], [4, 0]]), output([[1.0, 1.1], [4, 0.3]]))
    (flip,) = metrics.flips
    assert (flip.row, flip.reference, flip.answer, flip.explained) == (0, 0, 1, True)
    assert flip.margin == pytest.approx(0.1, abs=1e-6)
    assert flip.error == pytest.approx(0.2, abs=1e-6)


def test_a_served_answer_that_its_logits_do_not_give_is_unexplained() -> None:
    reference = output([[1, 0], [3, 0]])
    served = output([[1, 0], [3, 0]], answers=np.array([0, 1]))
    metrics = measure(reference, served)
    assert [flip.row for flip in metrics.unexplained] == [1]


def test_own_probabilities_count_before_the_softmax_of_the_logits() -> None:
    reference = output([[0, 0]])
    served = output([[0, 0]], probabilities=np.array([[0.75, 0.25]], np.float32))
    assert measure(reference, served).max_probability_error == pytest.approx(0.25)
    assert measure(reference, reference).max_probability_error == 0


def test_accuracy_is_counted_and_its_change_is_exact() -> None:
    logits = np.zeros((500, 2), np.float32)
    logits[:, 0] = 1
    changed = logits.copy()
    changed[0] = [0, 1]
    metrics = measure(StageOutput(logits), StageOutput(changed), truth=[0] * 500)
    assert metrics.accuracy == 499 / 500
    assert metrics.accuracy_points == -0.2  # exactly: a limit of 0.2 must hold


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted_and_never_best(bad: float) -> None:
    metrics = measure(output([[1, 0], [0, 1]]), output([[1, 0], [bad, 1]]))
    assert metrics.non_finite == 1
    assert metrics.max_error == np.inf
    assert not any(flip.explained for flip in metrics.flips)
    assert metrics.to_json()["max_error"] is None
    json.dumps(metrics.to_json(), allow_nan=False)
    if np.isnan(bad):
        assert metrics.flips == ()


def test_another_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        measure(output([[1, 0]]), output([[1, 0, 0]]))


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.integers(0, 2**32 - 1), st.floats(1e-4, 5))
def test_flips_are_the_texts_whose_best_label_differs(logits: np.ndarray, seed: int, scale: float) -> None:
    noise = np.random.default_rng(seed).normal(0, scale, logits.shape).astype(np.float32)
    reference, answer = StageOutput(logits), StageOutput(logits + noise)
    metrics = measure(reference, answer, truth=[0] * len(logits))
    expected = [
        row for row in range(len(logits)) if int(logits[row].argmax()) != int((logits + noise)[row].argmax())
    ]
    assert [flip.row for flip in metrics.flips] == expected
    # What a flip is made of: the error must have carried the answer over the margin.
    assert all(flip.margin <= 2 * flip.error + 1e-9 for flip in metrics.flips)
    assert metrics.accuracy == pytest.approx(((logits + noise).argmax(axis=1) == 0).mean())
    assert metrics.mean_error <= metrics.max_error == metrics.row_errors.max()


@settings(max_examples=30, deadline=None)
@given(LOGITS)
def test_a_stage_against_itself_is_perfect(logits: np.ndarray) -> None:
    itself = StageOutput(logits)
    metrics = measure(itself, itself, truth=[1] * len(logits))
    assert (metrics.max_error, metrics.mean_error, metrics.flips) == (0, 0, ())
    assert metrics.accuracy_points == 0
    assert np.allclose(probabilities_of(itself).sum(axis=1), 1)
    assert answers_of(itself).tolist() == logits.argmax(axis=1).tolist()
