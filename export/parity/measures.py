"""What is measured of a stage: its answers against the reference's, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertmp.export.consistency.tolerance import distance
from bertmp.export.parity.stage import StageOutput


@dataclass(frozen=True)
class Flip:
    """An example whose label changed.

    Attributes:
        row: where the text stands in the data file, counted from 0.
        reference, answer: the class index before and after.
        margin: how far apart the reference's two best logits lie.
        error: the largest logit error of this example.
        explained: whether the margin is less than twice the stage's largest error. Such an example was so
            close to undecided that an error of that size may tip it; any other flip is a defect.
    """

    row: int
    reference: int
    answer: int
    margin: float
    error: float
    explained: bool


@dataclass(frozen=True)
class StageMetrics:
    """A stage against a reference, over all examples. An error is infinite where a logit is not finite.

    Attributes:
        row_errors: the largest absolute logit error of each example, FP64 `[examples]`.
        margins: the distance of the reference's two best logits for each example, FP64 `[examples]`.
        max_error, mean_error: absolute logit error over all examples and labels.
        max_probability_error: the largest absolute error of a probability.
        flips: the examples whose label changed, in the file's order.
        non_finite: how many of the stage's numbers are NaN or infinite.
        correct, reference_correct: right answers of the stage and of the reference; None if unlabelled.
    """

    row_errors: np.ndarray
    margins: np.ndarray
    max_error: float
    mean_error: float
    max_probability_error: float
    flips: tuple[Flip, ...]
    non_finite: int
    correct: int | None
    reference_correct: int | None

    @property
    def texts(self) -> int:
        return len(self.row_errors)

    @property
    def accuracy(self) -> float | None:
        """The share of right answers, 0 to 1; None if unlabelled."""
        return None if self.correct is None else self.correct / self.texts

    @property
    def accuracy_points(self) -> float | None:
        """Percentage points gained (positive) or lost against the reference; None if unlabelled."""
        if self.correct is None or self.reference_correct is None:
            return None
        # From counts and not from two rounded shares: 1 text of 500 is exactly 0.2 points.
        return 100 * (self.correct - self.reference_correct) / self.texts

    @property
    def unexplained(self) -> tuple[Flip, ...]:
        return tuple(flip for flip in self.flips if not flip.explained)

    def error_quantile(self, share: float) -> float:
        """The row error that `share` of the examples do not exceed."""
        return float(np.quantile(self.row_errors, share, method="higher"))

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite is null."""
        quantiles = {f"p{share}": finite(self.error_quantile(share / 100)) for share in (50, 90, 99)}
        return {
            "texts": self.texts,
            "max_error": finite(self.max_error),
            "mean_error": finite(self.mean_error),
            "error_quantiles": quantiles,
            "max_probability_error": finite(self.max_probability_error),
            "flips": len(self.flips),
            "unexplained_flips": len(self.unexplained),
            "non_finite": self.non_finite,
            "accuracy": self.accuracy,
            "accuracy_points": self.accuracy_points,
        }


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def measure(reference: StageOutput, output: StageOutput, labels: Sequence[int] | None = None) -> StageMetrics:
    """Measures `output` against `reference`.

    A stage's own labels and probabilities count where it gives them; else they follow from its logits.

    Args:
        reference, output: logits FP32 `[examples, labels]` of the same examples in the same order.
        labels: the true class of each example, if known.

    Raises:
        ValueError: the shapes differ.
    """
    if output.logits.shape != reference.logits.shape:
        what = f"logits of shape {output.logits.shape} where the reference has {reference.logits.shape}"
        raise ValueError(what)
    errors = distance(output.logits, reference.logits)
    row_errors, margins = errors.max(axis=1), _margins(reference.logits)
    before, after = answers_of(reference), answers_of(output)
    max_error = float(errors.max())
    explained = margins < (2 * max_error if math.isfinite(max_error) else 0)
    rows = np.flatnonzero(before != after)
    columns = (array[rows].tolist() for array in (before, after, margins, row_errors, explained))
    own = (output.logits, *([] if output.probabilities is None else [output.probabilities]))
    non_finite = sum(int((~np.isfinite(array)).sum()) for array in own)
    off = distance(probabilities_of(output), probabilities_of(reference))
    largest = (max_error, float(errors.mean()), float(off.max()))
    right = (
        None if labels is None else int((given == np.asarray(labels)).sum()) for given in (after, before)
    )
    flips = tuple(map(Flip, rows.tolist(), *columns))
    return StageMetrics(row_errors, margins, *largest, flips, non_finite, *right)


def answers_of(output: StageOutput) -> np.ndarray:
    """The class index of each example `[examples]`: the stage's own answer, else the largest logit's."""
    if output.answers is not None:
        return np.asarray(output.answers)
    # argmax would answer with the first NaN; a NaN is never the best logit.
    return np.where(np.isnan(output.logits), -np.inf, output.logits).argmax(axis=1)


def probabilities_of(output: StageOutput) -> np.ndarray:
    """FP64 `[examples, labels]`: the stage's own probabilities, else the softmax of its logits."""
    if output.probabilities is not None:
        return np.asarray(output.probabilities, np.float64)
    logits = output.logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def _margins(logits: np.ndarray) -> np.ndarray:
    """How far the best logit lies above the second best; infinite where there is one label."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    best = np.partition(logits.astype(np.float64), -2, axis=1)
    with np.errstate(invalid="ignore"):
        margins = best[:, -1] - best[:, -2]
    return np.where(np.isnan(margins), 0.0, margins)
