"""How far a stage's answers lie from its reference's, and the gates it must pass: data, no side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.export.consistency.check import Consistency
from bertmp.export.consistency.tolerance import distance
from bertmp.export.parity.stage import StageOutput


@dataclass(frozen=True)
class Limits:
    """The limits of one stage; None leaves a gate out.

    Attributes:
        max_error: the largest absolute logit error.
        max_probability_error: the largest absolute error of a probability.
        accuracy_points: by how many percentage points the accuracy may differ, up or down.
        flips: how many labels may change.
        unexplained_flips: how many labels may change although the reference's two best logits lie at
            least twice the measured error apart.
        size_ratio: the weights that the plan puts into 16 bits against the same in FP32.
        non_finite: how many numbers may be NaN or infinite.
        verified: whether the precision of every layer must be verified where the stage does not run.
        consistent: whether the same row must get the same answer in every batch and at any padding.
    """

    max_error: float | None = None
    max_probability_error: float | None = None
    accuracy_points: float | None = None
    flips: int | None = None
    unexplained_flips: int | None = None
    size_ratio: float | None = None
    non_finite: int | None = 0
    verified: bool = False
    consistent: bool = True


_HALF = Limits(max_error=0.05, accuracy_points=0.2, unexplained_flips=0)

DEFAULTS: Mapping[str, Limits] = {
    "torch-fp32": Limits(),
    "onnx-fp32": Limits(max_error=5e-5),
    "onnx-fp16": replace(_HALF, size_ratio=0.51),
    "onnx-bf16": replace(_HALF, max_error=0.25, size_ratio=0.51),
    "engine": replace(_HALF, verified=True),
    "triton": Limits(max_probability_error=1e-5, flips=0),
}
"""The gates without a gates file."""


@dataclass(frozen=True)
class Gate:
    """One decision.

    Attributes:
        stage, name: what it is about, e.g. `onnx-fp16`, `max_error`.
        limit, measured: plain values; `measured` is None where the number is not finite.
        passed: whether the limit was kept.
        sentence: the same in words.
    """

    stage: str
    name: str
    limit: float | int | bool
    measured: float | int | bool | None
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Evidence:
    """What is known of a stage when its gates are decided.

    Attributes:
        measures: its answers against those it must match; None where it did not run.
        failure: the line of the error that it ended with; empty where there was none.
        size_ratio: the weights that the plan puts into 16 bits against the same in FP32; None for a stage
            that has none.
        verified: whether every layer's precision was verified; None where nothing was to be verified.
        consistency: its answers compared with each other; None where they were not.
    """

    measures: StageMetrics | None = None
    failure: str = ""
    size_ratio: float | None = None
    verified: bool | None = None
    consistency: Consistency | None = None


def limits_of(stage: str, limits: Mapping[str, Limits] = DEFAULTS) -> Limits:
    """A stage's limits; `triton-grpc` has those of `triton` unless it has its own."""
    return limits.get(stage) or limits.get(stage.partition("-")[0]) or Limits()


def of_precision(limits: Mapping[str, Limits], precision: str) -> Mapping[str, Limits]:
    """The limits for a bundle whose graph is in `fp16` or `bf16`.

    An engine computes in its graph's precision: unless it has a limit of its own for the logit error, it is
    held to that of the graph.
    """
    engine, graph = limits_of("engine", limits), limits_of(f"onnx-{precision}", limits)
    if precision == "fp16" or engine.max_error != DEFAULTS["engine"].max_error:
        return limits
    return {**limits, "engine": replace(engine, max_error=graph.max_error)}


def decide(stage: str, evidence: Evidence, limits: Limits) -> tuple[Gate, ...]:
    """Every gate of a stage; none for a stage that did not run and of which nothing was to be verified."""
    gates = []
    if evidence.failure:
        gates.append(Gate(stage, "runs", True, False, False, f"it failed: {evidence.failure}"))
    if evidence.measures is not None:
        gates += list(_measured(stage, evidence.measures, limits))
    limit, ratio = limits.size_ratio, evidence.size_ratio
    if limit is not None and ratio is not None:
        words = "the weights that the plan puts into 16 bits take"
        sentence = f"{words} {ratio:.3f} of their size in FP32, at most {limit:g} allowed"
        gates.append(Gate(stage, "size_ratio", limit, ratio, ratio <= limit, sentence))
    verified = evidence.verified
    if limits.verified and verified is not None:
        bad, good = "the engine is not verified against the plan", "every layer runs in its planned precision"
        gates.append(Gate(stage, "verified", True, verified, verified, good if verified else bad))
    found = evidence.consistency
    if limits.consistent and found is not None:
        gates.append(Gate(stage, "consistent", True, found.passed, found.passed, found.sentence()))
    return tuple(gates)


_AT_MOST = {
    "non_finite": "numbers that are NaN or infinite",
    "max_error": "largest logit error",
    "max_probability_error": "largest error of a probability",
    "flips": "labels that changed",
    "unexplained_flips": "labels that changed although the two best logits lie at least twice "
    "the error apart",
}
"""Gates that compare one figure with its limit, and the figure in words."""


def _measured(stage: str, metrics: StageMetrics, limits: Limits) -> Iterator[Gate]:
    figures = {**vars(metrics), "flips": len(metrics.flips), "unexplained_flips": len(metrics.unexplained)}
    for name, words in _AT_MOST.items():
        limit, value = getattr(limits, name), figures[name]
        if limit is not None:
            sentence = f"{words}: {value:.3g}, at most {limit:g} allowed"
            yield Gate(stage, name, limit, finite(value), value <= limit, sentence)
    limit, points = limits.accuracy_points, metrics.accuracy_points
    if limit is not None and points is not None:
        sentence = f"accuracy changed by {points:+.3g} points, {limit:g} either way allowed"
        yield Gate(stage, "accuracy_points", limit, points, abs(points) <= limit, sentence)


def override(tables: Mapping[str, Any], where: str) -> dict[str, Limits]:
    """The default limits with those of a gates file in their place.

    Args:
        tables: stage → gate → limit; a limit `false` leaves the gate out.
        where: the file, for messages.

    Raises:
        InputError: an unknown stage or gate, or a limit of the wrong type.
    """
    limits = dict(DEFAULTS)
    for stage, table in tables.items():
        if limits_of(stage) == Limits() and stage not in DEFAULTS:
            raise InputError(f"unknown stage '{stage}'", where, f"use one of {', '.join(DEFAULTS)}")
        if not isinstance(table, dict):
            raise InputError(f"'{stage}' is not a table", where, f"write [{stage}] and its limits below")
        checked = {name: _checked(stage, name, value, where) for name, value in table.items()}
        limits[stage] = replace(limits_of(stage), **checked)
    return limits


def _checked(stage: str, name: str, value: object, where: str) -> Any:
    known = {field.name: str(field.type) for field in fields(Limits)}
    if name == "proven":
        raise InputError(f"the gate 'proven' of {stage} is now 'verified'", where, "use the new name")
    if name not in known:
        raise InputError(f"unknown gate '{name}' of {stage}", where, f"use one of {', '.join(known)}")
    if known[name] == "bool":
        if not isinstance(value, bool):
            raise InputError(f"the limit of {stage}.{name} is not true or false", where, "fix it")
        return value
    if value is False:
        return None
    whole = "float" not in known[name]
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not 0 <= value < math.inf:  # type: ignore[operator]
        what = f"the limit of {stage}.{name} is not {'an integer' if whole else 'a number'} of at least 0"
        raise InputError(what, where, "fix it, or write false for no limit")
    return value


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
