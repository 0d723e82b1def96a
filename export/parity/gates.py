"""The gates that a stage must pass: limits, evidence and the decision, as data without side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_toml
from bertmp.export.parity.stage_metrics import StageMetrics, finite


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
        size_ratio: the graph's file against the FP32 graph's.
        non_finite: how many numbers may be NaN or infinite.
        verified: whether the precision of every layer must be verified where the stage does not run.
    """

    max_error: float | None = None
    max_probability_error: float | None = None
    accuracy_points: float | None = None
    flips: int | None = None
    unexplained_flips: int | None = None
    size_ratio: float | None = None
    non_finite: int | None = 0
    verified: bool = False


_HALF = Limits(max_error=0.05, accuracy_points=0.2, unexplained_flips=0)

DEFAULTS: Mapping[str, Limits] = {
    "torch-fp32": Limits(),
    "onnx-fp32": Limits(max_error=5e-5),
    "onnx-fp16": replace(_HALF, size_ratio=0.51),
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
        metrics: its answers against those it must match; None where it did not run.
        failure: the line of the error that it ended with; empty where there was none.
        size_ratio: its file against the FP32 graph's; None where it has none of its own.
        verified: whether every layer's precision was verified; None where nothing was to be verified.
    """

    metrics: StageMetrics | None = None
    failure: str = ""
    size_ratio: float | None = None
    verified: bool | None = None


def limits_of(stage: str, limits: Mapping[str, Limits] = DEFAULTS) -> Limits:
    """A stage's limits; `triton-grpc` has those of `triton` unless it has its own."""
    return limits.get(stage) or limits.get(stage.partition("-")[0]) or Limits()


def decide(stage: str, evidence: Evidence, limits: Limits) -> tuple[Gate, ...]:
    """Every gate of a stage; none for a stage that did not run and of which nothing was to be verified."""
    gates = []
    if evidence.failure:
        gates.append(Gate(stage, "runs", True, False, False, f"it failed: {evidence.failure}"))
    if evidence.metrics is not None:
        gates += list(_measured(stage, evidence.metrics, limits))
    if limits.size_ratio is not None and evidence.size_ratio is not None:
        gates.append(_size(stage, evidence.size_ratio, limits.size_ratio))
    if limits.verified and evidence.verified is not None:
        gates.append(_verified(stage, evidence.verified))
    return tuple(gates)


def _measured(stage: str, metrics: StageMetrics, limits: Limits) -> Iterator[Gate]:
    wanted: list[tuple[str, float | int | None, float | int | None, str]] = [
        ("non_finite", limits.non_finite, metrics.non_finite, "numbers that are NaN or infinite"),
        ("max_error", limits.max_error, metrics.max_error, "largest logit error"),
        (
            "max_probability_error",
            limits.max_probability_error,
            metrics.max_probability_error,
            "largest error of a probability",
        ),
        ("flips", limits.flips, len(metrics.flips), "labels that changed"),
        (
            "unexplained_flips",
            limits.unexplained_flips,
            len(metrics.unexplained),
            "labels that changed although the two best logits lie at least twice the error apart",
        ),
    ]
    for name, limit, value, words in wanted:
        if limit is not None and value is not None:
            yield _at_most(stage, name, limit, value, words)
    points = metrics.accuracy_points
    if limits.accuracy_points is not None and points is not None:
        sentence = f"accuracy changed by {points:+.3g} points, {limits.accuracy_points:g} either way allowed"
        passed = abs(points) <= limits.accuracy_points
        yield Gate(stage, "accuracy_points", limits.accuracy_points, points, passed, sentence)


def _at_most(stage: str, name: str, limit: float, value: float, words: str) -> Gate:
    passed = value <= limit
    sentence = f"{words}: {value:.3g}, at most {limit:g} allowed"
    return Gate(stage, name, limit, finite(value), passed, sentence)


def _size(stage: str, ratio: float, limit: float) -> Gate:
    sentence = f"the file has {ratio:.3f} of the FP32 file's size, at most {limit:g} allowed"
    return Gate(stage, "size_ratio", limit, ratio, ratio <= limit, sentence)


def _verified(stage: str, verified: bool) -> Gate:
    words = "runs in its planned precision" if verified else "is not verified against the plan"
    return Gate(
        stage,
        "verified",
        True,
        verified,
        verified,
        f"every layer {words}" if verified else f"the engine {words}",
    )


def read_gates(path: Path) -> dict[str, Limits]:
    """The default limits with those of a TOML file in their place; see `override`."""
    return override(read_toml(path), str(path))


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
    known = {field.name: field.type for field in fields(Limits)}
    if name == "proven":
        raise InputError(f"the gate 'proven' of {stage} is now 'verified'", where, "use the new name")
    if name not in known:
        raise InputError(f"unknown gate '{name}' of {stage}", where, f"use one of {', '.join(known)}")
    if name == "verified":
        if isinstance(value, bool):
            return value
        raise InputError(f"the limit of {stage}.{name} is not true or false", where, "fix it")
    if value is False:
        return None
    kinds: tuple[type, ...] = (int,) if "float" not in str(known[name]) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < math.inf:  # type: ignore[operator]
        kind = "an integer" if kinds == (int,) else "a number"
        raise InputError(
            f"the limit of {stage}.{name} is not {kind} of at least 0",
            where,
            "fix it, or write false for no limit",
        )
    return value
