"""Metrics before and after, task by task."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bertmp.metrics import task_metrics
from bertmp.metrics.comparison import TASK_METRICS, MetricComparison, compare_metrics
from bertmp.metrics.spans import span_counts

ROWS = 4000
LABELS = ("B-LOC", "I-LOC", "O")


def answers_of(task: str, share_wrong: float) -> tuple[np.ndarray, ...]:
    """The arrays of one side, of which about that share is wrong; fewer wrong rows are among more."""
    random = np.random.default_rng(0)
    luck = random.random(ROWS)
    wrong = luck < share_wrong
    if task in ("classification", "next-sentence"):
        truth = random.integers(0, 2, ROWS)
        return np.where(wrong, 1 - truth, truth), truth
    if task == "multi-label-classification":
        labels = random.random((ROWS, 3)) < 0.4
        return labels ^ wrong[:, None], labels
    if task == "regression":
        numbers = random.normal(size=ROWS)
        return numbers + share_wrong * random.normal(size=ROWS), numbers
    if task == "masked-lm":
        masked = random.integers(1, 5, ROWS)
        right = np.where(wrong, 0, masked)
        return (np.stack([right, np.where(wrong, 5.0, 0.5) * masked, masked], 1),)
    tags = [[0, 1, 2] for _ in range(ROWS)]
    found = [[0, 2, 2] if one else row for one, row in zip(wrong, tags, strict=True)]
    words = np.stack([np.where(wrong, 2, 3), np.full(ROWS, 3)], 1)
    if task == "token-classification":
        return (words,)
    named = ([[LABELS[tag] for tag in row] for row in side] for side in (found, tags))
    return words, span_counts(*named)


@pytest.mark.parametrize("task", TASK_METRICS)
def test_comparison_tells_much_worse_from_much_better(task: str) -> None:
    good, bad = answers_of(task, 0.05), answers_of(task, 0.2)
    lost = compare_metrics(task, good, bad, resamples=200)
    won = compare_metrics(task, bad, good, resamples=200)
    assert {one.name: one.non_inferiority.verdict for one in lost} == dict.fromkeys(
        [m.name for m in TASK_METRICS[task]], "worse"
    )
    assert {one.non_inferiority.verdict for one in won} == {"better"}
    for one, other in zip(lost, won, strict=True):
        assert (one.before, one.after) == (other.after, other.before)
        assert one.non_inferiority.difference.estimate == pytest.approx(one.after - one.before)
        assert one.mcnemar_p is None or one.mcnemar_p < 1e-6
    assert json.loads(json.dumps([one.to_json() for one in lost]))[0]["name"] == TASK_METRICS[task][0].name


@pytest.mark.parametrize("task", TASK_METRICS)
def test_comparison_of_the_same_answers_bounds_what_it_can(task: str) -> None:
    same = answers_of(task, 0.05)
    for one, metric in zip(compare_metrics(task, same, same), TASK_METRICS[task], strict=True):
        unseen = -math.expm1(math.log(0.05) / ROWS) * (metric.scale or 0.0)
        judged = one.non_inferiority
        assert judged.difference.high == pytest.approx(unseen)
        expected = "equal" if metric.scale and unseen <= judged.margin else "inconclusive"
        assert judged.verdict == expected, metric.name
        assert one.mcnemar_p == (None if metric.right is None else 1.0)


def by_name(found: tuple[MetricComparison, ...]) -> dict[str, float]:
    return {one.name: one.after for one in found}


def test_compared_values_are_the_metrics_of_the_task() -> None:
    def of(task: str) -> tuple[tuple[np.ndarray, ...], dict[str, float]]:
        rows = answers_of(task, 0.1)
        return rows, by_name(compare_metrics(task, rows, rows))

    rows, found = of("classification")
    expected = task_metrics.classification(*rows, 2)
    assert found == {name: getattr(expected, name) for name in ("accuracy", "macro_f1", "matthews")}
    rows, found = of("multi-label-classification")
    assert found == {
        name: getattr(task_metrics.multi_label(*rows), name) for name in ("accuracy", "f1", "macro_f1")
    }
    rows, found = of("regression")
    assert found == pytest.approx(vars(task_metrics.regression(*rows)))
    (sums,), found = of("masked-lm")
    right, loss, masked = sums.sum(0)
    assert found == pytest.approx({"mlm_accuracy": right / masked, "mlm_perplexity": math.exp(loss / masked)})
    (words, _), found = of("entities")
    assert found["accuracy"] == pytest.approx(words[:, 0].sum() / words[:, 1].sum())
    # Where a tag is wrong, the sentence's only entity is.
    assert found["f1"] == pytest.approx((words[:, 0] == 3).mean())
