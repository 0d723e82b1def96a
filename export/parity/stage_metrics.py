"""What is measured of a stage: its answers against the reference's, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertmp.export.consistency.tolerance import distance
from bertmp.export.parity.stage import StageOutput
from bertmp.export.parity.tasks import UNKNOWN, VIEWS, TaskView, Units

USUAL_LOGIT = 8.0
"""About as large are a classifier's logits, for which the default limits are meant."""


@dataclass(frozen=True)
class Flip:
    """A unit whose label changed: a text, a word or a masked token.

    Attributes:
        row: the example's place in the data file, counted from 0.
        unit: the unit's place among all units.
        reference, answer: the class index before and after; of several labels, one bit for each.
        margin: how far apart the reference's two best logits lie; of several labels, how far the closest lies
            from 0.
        error: the largest logit error of this unit.
        explained: whether an error of that size may tip the label. Any other flip is a defect: a served
            answer that is not what its logits say.
    """

    row: int
    unit: int
    reference: int
    answer: int
    margin: float
    error: float
    explained: bool


@dataclass(frozen=True)
class StageMetrics:
    """A stage against a reference, over all units. An error is infinite where a number is not finite.

    Attributes:
        row_errors: the largest absolute error of each unit's numbers, FP64 `[units]`.
        margins: see `Flip`; FP64 `[units]`.
        max_error, mean_error: absolute error over all numbers; the largest over further outputs, too.
        scale: the largest number of the reference.
        error_999: the absolute error that 99.9 % of the numbers do not exceed.
        max_relative_error, mean_relative_error, relative_error_999: of each unit, its largest error over the
            largest number of the reference's same unit: the largest, the mean, and what 99.9 % do not exceed.
        max_probability_error: the largest absolute error of a probability.
        max_divergence: the largest Kullback-Leibler divergence of a unit's probabilities, in nats; None where
            there are none.
        flips: the units whose label changed, in the file's order.
        non_finite: how many of the stage's numbers are NaN or infinite.
        correct, reference_correct: right labels of the stage and of the reference, among `judged` units; None
            if unlabelled.
        judged: how many units have a known label.
        examples: how many examples have units.
        allowance: the factor of a limit on absolute errors: 1 for labels of texts, whose logits are of a few
            units; for other heads as many times more as their numbers are larger, since FP32 and FP16 round
            in proportion.
    """

    row_errors: np.ndarray
    margins: np.ndarray
    max_error: float
    mean_error: float
    scale: float
    error_999: float
    max_relative_error: float
    mean_relative_error: float
    relative_error_999: float
    max_probability_error: float
    max_divergence: float | None
    flips: tuple[Flip, ...]
    non_finite: int
    correct: np.ndarray | None = field(repr=False)
    reference_correct: np.ndarray | None = field(repr=False)
    examples: int = 0
    allowance: float = 1.0

    @property
    def texts(self) -> int:
        """The number of examples."""
        return self.examples

    @property
    def accuracy(self) -> float | None:
        """The share of right labels, 0 to 1; None if unlabelled."""
        return None if self.correct is None or not len(self.correct) else float(self.correct.mean())

    @property
    def accuracy_points(self) -> float | None:
        """Percentage points gained (positive) or lost against the reference; None if unlabelled."""
        if self.correct is None or self.reference_correct is None or not len(self.correct):
            return None
        # From counts and not from two rounded shares: 1 text of 500 is exactly 0.2 points.
        gained = int(self.correct.sum()) - int(self.reference_correct.sum())
        return 100 * gained / len(self.correct)

    @property
    def unexplained(self) -> tuple[Flip, ...]:
        return tuple(flip for flip in self.flips if not flip.explained)

    def error_quantile(self, share: float) -> float:
        """The error that `share` of the units do not exceed."""
        return float(np.quantile(self.row_errors, share, method="higher"))

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite is null."""
        quantiles = {f"p{share}": finite(self.error_quantile(share / 100)) for share in (50, 90, 99)}
        divergence = self.max_divergence
        return {
            "texts": self.texts,
            "units": len(self.row_errors),
            "max_error": finite(self.max_error),
            "mean_error": finite(self.mean_error),
            "error_quantiles": {**quantiles, "p99.9": finite(self.error_999)},
            "max_relative_error": finite(self.max_relative_error),
            "mean_relative_error": finite(self.mean_relative_error),
            "relative_error_quantiles": {"p99.9": finite(self.relative_error_999)},
            "max_probability_error": finite(self.max_probability_error),
            "max_divergence": None if divergence is None else finite(divergence),
            "flips": len(self.flips),
            "unexplained_flips": len(self.unexplained),
            "non_finite": self.non_finite,
            "accuracy": self.accuracy,
            "accuracy_points": self.accuracy_points,
        }


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def measure(
    reference: StageOutput,
    output: StageOutput,
    truth: Sequence[int] | np.ndarray | None = None,
    view: TaskView = VIEWS["classification"],
    units: Units | None = None,
) -> StageMetrics:
    """Measures `output` against `reference`.

    A stage's own labels and probabilities count where it gives them; else they follow from its logits.

    Args:
        reference, output: numbers FP32 `[units, width]` of the same units in the same order.
        truth: what is right of each unit, see `ParityInputs`; None if unknown.
        view: how the task's answers are compared.
        units: which example each unit belongs to; None for one unit per example.

    Raises:
        ValueError: the shapes differ.
    """
    pairs = [(output.logits, reference.logits)]
    pairs += [
        (output.others[name], value) for name, value in reference.others.items() if name in output.others
    ]
    for given, wanted in pairs:
        if given.shape != wanted.shape:
            raise ValueError(f"logits of shape {given.shape} where the reference has {wanted.shape}")
    errors, sizes = distance(output.logits, reference.logits), _largest(reference.logits)
    row_errors, margins = errors.max(axis=1), _margins(reference.logits, view)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(row_errors == 0, 0.0, row_errors / sizes)
    others = [float(distance(given, wanted).max(initial=0)) for given, wanted in pairs[1:]]
    own = [given for given, _ in pairs] + ([] if output.probabilities is None else [output.probabilities])
    off, divergence = _probability_errors(output, reference, view)
    before, after = answers_of(reference, view), answers_of(output, view)
    right = (_right(given, truth, view) for given in (after, before))
    return StageMetrics(
        row_errors=row_errors,
        margins=margins,
        max_error=max([float(errors.max()), *others]),
        mean_error=float(errors.mean()),
        scale=float(sizes.max()),
        error_999=float(np.quantile(errors, 0.999, method="higher")),
        max_relative_error=float(relative.max()),
        mean_relative_error=float(relative.mean()),
        relative_error_999=float(np.quantile(relative, 0.999, method="higher")),
        max_probability_error=off,
        max_divergence=divergence,
        flips=_flips(before, after, margins, row_errors, view, units),
        non_finite=sum(int((~np.isfinite(array)).sum()) for array in own),
        correct=next(right),
        reference_correct=next(right),
        allowance=1.0 if view.task == "classification" else max(1.0, float(sizes.max()) / USUAL_LOGIT),
        examples=len(row_errors) if units is None else len(np.unique(units.rows)),
    )


def _flips(
    before: np.ndarray,
    after: np.ndarray,
    margins: np.ndarray,
    errors: np.ndarray,
    view: TaskView,
    units: Units | None,
) -> tuple[Flip, ...]:
    # The two best logits may move towards each other; a single label's logit has to cross 0 alone.
    reach = np.where(np.isfinite(errors), errors * (1 if view.kind == "multi-label" else 2), 0)
    changed = np.flatnonzero(before != after)
    rows = changed if units is None else units.rows[changed]
    columns = (array[changed].tolist() for array in (before, after, margins, errors, margins <= reach))
    return tuple(map(Flip, rows.tolist(), changed.tolist(), *columns))


def _right(given: np.ndarray, truth: Sequence[int] | np.ndarray | None, view: TaskView) -> np.ndarray | None:
    """Which labels are right, of the units whose label is known; None where there are no labels."""
    if truth is None or view.kind not in ("classes", "multi-label"):
        return None
    wanted = np.asarray(truth)
    if view.kind == "multi-label":
        return np.asarray(given == _as_bits(wanted > 0))
    known = wanted != UNKNOWN
    return np.asarray(given[known] == wanted[known])


def answers_of(output: StageOutput, view: TaskView = VIEWS["classification"]) -> np.ndarray:
    """The label of each unit `[units]`: the stage's own answer, else what its logits say.

    The largest logit's class; of several labels, one bit for each that has a positive logit; 0 for heads
    without labels.
    """
    if output.answers is not None:
        return np.asarray(output.answers)
    if view.kind == "multi-label":
        return _as_bits(output.logits > 0)
    if view.kind != "classes":
        return np.zeros(len(output.logits), np.int64)
    # argmax would answer with the first NaN; a NaN is never the best logit.
    return np.where(np.isnan(output.logits), -np.inf, output.logits).argmax(axis=1)


def _as_bits(labels: np.ndarray) -> np.ndarray:
    """BOOL `[units, labels]` as one Python integer per unit."""
    weights = np.array([1 << place for place in range(labels.shape[1])], object)
    return np.asarray((labels.astype(object) * weights).sum(axis=1))


def probabilities_of(output: StageOutput, view: TaskView = VIEWS["classification"]) -> np.ndarray:
    """FP64 `[units, labels]`: the stage's own probabilities, else the softmax or sigmoid of its logits."""
    if output.probabilities is not None:
        return np.asarray(output.probabilities, np.float64)
    logits = output.logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if view.kind == "multi-label":
            return np.asarray(1 / (1 + np.exp(-logits)))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _probability_errors(
    output: StageOutput, reference: StageOutput, view: TaskView
) -> tuple[float, float | None]:
    """The largest error of a probability, and the largest divergence of a unit's distribution."""
    if view.kind not in ("classes", "multi-label"):
        return 0.0, None
    given, wanted = probabilities_of(output, view), probabilities_of(reference, view)
    largest = float(distance(given, wanted).max())
    if view.kind == "multi-label":
        return largest, None
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(wanted > 0, wanted * (np.log(wanted) - np.log(given)), 0.0)
    divergences = terms.sum(axis=1)
    # Rounding may leave a sum slightly below 0, which a divergence never is.
    return largest, float(np.where(np.isnan(divergences), np.inf, np.maximum(divergences, 0)).max())


def _largest(numbers: np.ndarray) -> np.ndarray:
    """The largest magnitude of each unit, FP64 `[units]`."""
    return np.asarray(np.abs(np.where(np.isfinite(numbers), numbers, 0).astype(np.float64)).max(axis=1))


def _margins(logits: np.ndarray, view: TaskView) -> np.ndarray:
    """See `Flip`; infinite where there is nothing to decide."""
    if view.kind == "multi-label":
        return np.asarray(np.abs(np.nan_to_num(logits.astype(np.float64))).min(axis=1))
    if logits.shape[1] < 2 or view.kind != "classes":
        return np.full(len(logits), np.inf)
    best = np.partition(logits.astype(np.float64), -2, axis=1)
    with np.errstate(invalid="ignore"):
        margins = best[:, -1] - best[:, -2]
    return np.where(np.isnan(margins), 0.0, margins)
