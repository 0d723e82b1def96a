"""The tasks' metrics, against their definitions written out row by row."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.metrics import pretraining_metrics
from bertmp.metrics import task_metrics as metrics

CLASSES = 4
pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=40)


def f1_of(number: int, rows: list[tuple[int, int]]) -> float:
    right = sum(answer == truth == number for answer, truth in rows)
    wrong = sum((answer == number) != (truth == number) for answer, truth in rows)
    return 2 * right / (2 * right + wrong) if right + wrong else 0.0


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """R_K as Gorodkin defines it: the correlation of two matrices of indicators."""
    x, y = x - x.mean(0), y - y.mean(0)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread > 1e-9 else 0.0


@given(pairs)
def test_classification_is_its_definition(rows: list[tuple[int, int]]) -> None:
    answers, truth = np.array(rows).T
    found = metrics.classification(answers, truth, CLASSES)
    assert found.accuracy == pytest.approx(sum(a == t for a, t in rows) / len(rows))
    assert found.class_f1 == pytest.approx([f1_of(number, rows) for number in range(CLASSES)])
    occurring = {number for row in rows for number in row}
    assert found.macro_f1 == pytest.approx(sum(f1_of(number, rows) for number in occurring) / len(occurring))
    indicators = np.eye(CLASSES)
    assert found.matthews == pytest.approx(correlation(indicators[answers], indicators[truth]), abs=1e-9)
    counted = Counter((truth, answer) for answer, truth in rows)
    assert found.confusion == tuple(
        tuple(counted[true, answered] for answered in range(CLASSES)) for true in range(CLASSES)
    )
    assert metrics.macro_f1(answers, truth) == found.macro_f1
    assert metrics.matthews(answers, truth) == found.matthews


@given(pairs, st.integers(0, 40))
def test_class_sums_of_parts_add_up_to_those_of_all(rows: list[tuple[int, int]], cut: int) -> None:
    table = np.array(rows)
    total: Counter[str] = Counter()
    for part in (table[:cut], table[cut:]):
        total.update(metrics.class_sums(*part.T))
    found = metrics.classification(*table.T, CLASSES)
    assert metrics.class_figures(total) == {"macro_f1": found.macro_f1, "matthews": found.matthews}


def test_matthews_of_two_classes_is_the_textbook_formula() -> None:
    tp, tn, fp, fn = 90, 1, 4, 5
    answers = [1] * tp + [0] * tn + [1] * fp + [0] * fn
    truth = [1] * tp + [0] * tn + [0] * fp + [1] * fn
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.matthews(answers, truth) == pytest.approx(expected)
    assert metrics.classification(answers, truth, 2).accuracy == pytest.approx(0.91)


def test_class_figures_of_billions_of_rows_do_not_overflow() -> None:
    sums = {"right 0": 3e9, "given 0": 4e9, "true 0": 4e9, "right 11": 3e9, "given 11": 4e9, "true 11": 4e9}
    assert metrics.class_figures(sums) == pytest.approx({"macro_f1": 0.75, "matthews": 0.5})


def test_class_figures_without_counts_are_none() -> None:
    assert metrics.class_figures({"loss": 1.0, "examples": 2.0}) == {}


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=3), min_size=1))
def test_multi_label_is_its_definition(rows: list[list[tuple[bool, bool]]]) -> None:
    table = np.array(rows)
    found = metrics.multi_label(table[..., 0], table[..., 1])
    columns = [[(int(a), int(t)) for a, t in column] for column in zip(*rows, strict=True)]
    by_label = [f1_of(1, column) for column in columns]
    occurring = [f1 for f1, column in zip(by_label, columns, strict=True) if any(a or t for a, t in column)]
    assert found.label_f1 == pytest.approx(by_label)
    assert found.macro_f1 == pytest.approx(sum(occurring) / len(occurring) if occurring else 0.0)
    assert found.f1 == pytest.approx(f1_of(1, [cell for column in columns for cell in column]))
    assert found.accuracy == pytest.approx(np.mean([all(a == t for a, t in row) for row in rows]))


def test_regression_far_from_zero_keeps_its_digits() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=200)
    answers = truth + random.normal(size=200)
    near, far = metrics.regression(answers, truth), metrics.regression(answers + 1e7, truth + 1e7)
    assert near.pearson == pytest.approx(np.corrcoef(answers, truth)[0, 1], rel=1e-12)
    assert near.mse == pytest.approx(np.square(answers - truth).mean(), rel=1e-12)
    assert (far.pearson, far.mse) == pytest.approx((near.pearson, near.mse), rel=1e-6)
    assert far.spearman == near.spearman


def test_spearman_is_the_published_example_and_shares_ranks() -> None:
    # IQ and hours of television, the usual worked example: rho = -29/165.
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert metrics.spearman(iq, hours) == pytest.approx(-29 / 165)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert metrics.spearman([1, 7, 7, 9], [0, 1, 2, 3]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert metrics.spearman([3, 3, 3], [1, 2, 3]) == 0.0


@given(st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 2)), min_size=3, unique=True))
def test_spearman_of_a_rising_function_is_one(values: list[float]) -> None:
    x = np.array(values)
    assert metrics.spearman(x**3 + x, x) == pytest.approx(1.0)
    assert metrics.spearman(-x, x) == pytest.approx(-1.0)


def test_token_classification_counts_words_and_entities() -> None:
    labels = ["B-LOC", "B-PER", "I-PER", "O"]
    found = metrics.token_classification([[1, 2, 3], [0]], [[1, 2, 0], [0]], labels)
    assert found == metrics.TokenClassificationMetrics(0.75, 1.0, pytest.approx(2 / 3), pytest.approx(0.8))
    assert metrics.token_classification([[0, 1]], [[0, 0]], ["ADJ", "NOUN"]).f1 is None


def test_masked_language_metrics_are_those_of_probabilities() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    logits = np.log(probabilities) + np.array([[1000.0], [-1000.0]])  # no overflow
    found = pretraining_metrics.masked_language(logits, [1, 1])
    assert found.mlm_loss == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    assert found.mlm_perplexity == pytest.approx(1 / math.sqrt(0.25 * 0.8))
    assert found.mlm_accuracy == 0.5
    assert pretraining_metrics.perplexity([1e4]) == math.inf


def test_next_sentence_metrics() -> None:
    found = pretraining_metrics.next_sentence([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]], [0, 1, 1])
    assert found.nsp_accuracy == pytest.approx(2 / 3)
    assert found.nsp_loss == pytest.approx((2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 3)


def test_all_metrics_are_json() -> None:
    one = metrics.classification([0, 1], [0, 0], 2).to_json()
    assert json.loads(json.dumps(one)) == {
        "accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "matthews": 0.0,
        "class_f1": [pytest.approx(2 / 3), 0.0], "confusion": [[1, 1], [0, 0]],
    }  # fmt: skip
    others = [
        metrics.multi_label(np.eye(2), np.eye(2)),
        metrics.regression(np.arange(3.0), np.arange(3.0)),
        metrics.token_classification([[0]], [[0]], ["A"]),
        pretraining_metrics.masked_language(np.eye(2), [0, 1]),
        pretraining_metrics.next_sentence(np.eye(2), [0, 1]),
    ]
    for other in others:
        assert json.loads(json.dumps(other.to_json())) == vars(other) | (
            {"label_f1": [1.0, 1.0]} if isinstance(other, metrics.MultiLabelMetrics) else {}
        )


def test_a_perfect_matthews_is_never_above_one() -> None:
    for first, second in ((a, b) for a in range(1, 30) for b in range(1, 30)):
        truth = np.repeat([0, 1], [first, second])
        assert 1 - 1e-12 < metrics.matthews(truth, truth) <= 1
