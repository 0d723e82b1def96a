"""All metrics of a task before and after a change: values, intervals and verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bertmp.core.io import JsonSerializable
from bertmp.metrics import task_metrics
from bertmp.metrics.intervals import RESAMPLES, Rows, accuracy_difference, bootstrap_difference, mcnemar_p
from bertmp.metrics.non_inferiority import MARGIN, NonInferiority, non_inferiority
from bertmp.metrics.pretraining_metrics import perplexity
from bertmp.metrics.task_metrics import f1_figures


@dataclass(frozen=True)
class Metric:
    """A metric and what its interval needs to know.

    Attributes:
        name: as in the evaluation lines, without `eval_`.
        value: its value from the arrays of `TASK_METRICS`.
        right: which rows are right, BOOL `[rows]`, where the metric is their share: its interval is exact.
        scale: see `bootstrap_difference`.
        higher_is_better: False for errors and perplexity.
    """

    name: str
    value: Callable[..., float]
    right: Callable[..., NDArray[np.bool_]] | None = None
    scale: float | None = 1.0
    higher_is_better: bool = True


@dataclass(frozen=True)
class MetricComparison(JsonSerializable):
    """One metric before and after.

    Attributes:
        name: the metric's name.
        before, after: its values.
        non_inferiority: the difference, its interval and the verdict.
        mcnemar_p: for a share of right rows, the exact p of McNemar's test; else None.
    """

    name: str
    before: float
    after: float
    non_inferiority: NonInferiority
    mcnemar_p: float | None


def compare_metrics(
    task: str,
    before: Rows,
    after: Rows,
    *,
    margin: float = MARGIN,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[MetricComparison, ...]:
    """Compares all metrics of a task.

    Args:
        task: a key of `TASK_METRICS`, which says what the arrays are.
        before: the reference's arrays.
        after: the other's, of the same rows in the same order.
        margin: the share of the reference's value that may be lost.
        confidence: of the intervals, between 0 and 1.
        seed: of the bootstrap.
        resamples: how many it draws.

    Raises:
        ValueError: no rows, or not the same number.
    """

    def compared(metric: Metric) -> MetricComparison:
        p = None
        if metric.right is not None:
            sides = metric.right(*before), metric.right(*after)
            difference, p = accuracy_difference(*sides, confidence), mcnemar_p(*sides)
        else:
            draws = {"seed": seed, "resamples": resamples}
            difference = bootstrap_difference(
                metric.value, before, after, **draws, confidence=confidence, scale=metric.scale
            )
        values = metric.value(*before), metric.value(*after)
        verdict = non_inferiority(values[0], difference, margin, higher_is_better=metric.higher_is_better)
        return MetricComparison(metric.name, *values, verdict, p)

    return tuple(map(compared, TASK_METRICS[task]))


def _share(right: Callable[..., NDArray[np.bool_]]) -> Callable[..., float]:
    """The share of the rows that are right."""
    return lambda *rows: float(right(*rows).mean())


def _same(answers: NDArray, truth: NDArray) -> NDArray[np.bool_]:
    """Which rows are the same, BOOL `[rows]`, of `[rows]` or `[rows, labels]`."""
    return (answers == truth).reshape(len(truth), -1).all(1)


def _ratio(part: int, whole: int) -> Callable[[NDArray], float]:
    """The sum of one column over that of another, 0 without any."""
    return lambda sums: float(sums[:, part].sum() / max(sums[:, whole].sum(), 1))


def _span_f1(words: NDArray, spans: NDArray) -> float:
    return f1_figures(*spans.sum(0).tolist())["f1"]


def _perplexity(sums: NDArray) -> float:
    return perplexity(_ratio(1, 2)(sums))


_CLASSIFICATION = (
    Metric("accuracy", _share(_same), _same),
    Metric("macro_f1", task_metrics.macro_f1),
    Metric("matthews", task_metrics.matthews, scale=2.0),
)
_MULTI_LABEL = (
    Metric("accuracy", _share(_same), _same),
    Metric("f1", lambda answers, truth: task_metrics.multi_label(answers, truth).f1),
    Metric("macro_f1", lambda answers, truth: task_metrics.multi_label(answers, truth).macro_f1),
)
_REGRESSION = (
    Metric("mse", lambda a, t: float(np.square(a - t).mean()), scale=None, higher_is_better=False),
    Metric("pearson", task_metrics.pearson, scale=2.0),
    Metric("spearman", task_metrics.spearman, scale=2.0),
)
_WORDS = (Metric("accuracy", lambda words, *_: _ratio(0, 1)(words)),)
_MASKED = (
    Metric("mlm_accuracy", _ratio(0, 2)),
    Metric("mlm_perplexity", _perplexity, scale=None, higher_is_better=False),
)

TASK_METRICS: dict[str, tuple[Metric, ...]] = {
    "classification": _CLASSIFICATION,
    "multi-label-classification": _MULTI_LABEL,
    "regression": _REGRESSION,
    "token-classification": _WORDS,
    "entities": (*_WORDS, Metric("f1", _span_f1)),
    "masked-lm": _MASKED,
    "next-sentence": (Metric("nsp_accuracy", _share(_same), _same),),
}
"""The metrics of each task, and of which arrays of one entry per text:

- `classification`, `next-sentence`: answers and truth, INT `[rows]`.
- `multi-label-classification`: answers and truth, BOOL `[rows, labels]`.
- `regression`: answers and truth, FP64 `[rows]`.
- `token-classification`: right and all words of each sentence, INT `[rows, 2]`; `entities`, for tags of
  entities: also the counts of `span_counts`, INT `[rows, 3]`.
- `masked-lm`: of each text's masked words, how many are right, the summed loss and how many there are,
  FP64 `[rows, 3]`.

Pre-training is compared as `masked-lm` and `next-sentence`.
"""

LOWER_IS_BETTER = frozenset(
    metric.name for metrics in TASK_METRICS.values() for metric in metrics if not metric.higher_is_better
)
"""The metrics that are errors, losses or perplexities."""
