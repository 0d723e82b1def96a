"""How far a stage's answers lie from its reference's, and the gates it must pass: data, no side effects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from bertmp.core.errors import InputError
from bertmp.core.io import read_toml
from bertmp.export.consistency.check import Consistency
from bertmp.export.parity.stage_metrics import StageMetrics, finite


@dataclass(frozen=True)
class Limits:
    """The limits of one stage; None leaves a gate out.

    Attributes:
        max_error: the largest absolute logit error.
        max_probability_error: the largest absolute error of a probability.
        accuracy_points: by how many percentage points the accuracy may differ, up or down; above 0, always by
            one text.
        flips: how many labels may change.
        unexplained_flips: how many labels may change although the reference's two best logits lie at
            least twice the measured error apart.
        size_ratio: the weights that the plan puts into 16 bits against the same in FP32.
        non_finite: how many numbers may be NaN or infinite.
        verified: whether the precision of every layer must be verified where the stage does not run.
        consistent: whether the same row must get the same answer in every batch and at any padding.
        as_planned: whether a low-precision graph must be the one that its plan makes of the FP32 graph.
        as_exported: whether the bundle's labels, configuration, tokenizer, weights must be its checkpoint's.
        same_files: whether a served model must have been deployed from this bundle's graph and tokenizer.
        same_answers: whether a served model must answer as the bundle's FP32 graph does.
        adversarial: whether the adversarial inputs, too, must be answered within these limits.
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
    same_files: bool = True
    as_planned: bool = True
    as_exported: bool = True
    same_answers: bool = True
    adversarial: bool = True


_HALF = Limits(max_error=0.05, accuracy_points=0.2, unexplained_flips=0)

_NONE = Limits(non_finite=None, consistent=False, adversarial=False)
"""Nothing of torch under autocast ships, and its products are in 16 bits whatever the plan keeps in FP32."""

DEFAULTS: Mapping[str, Limits] = {
    "torch-fp32": Limits(),
    "torch-amp": _NONE,
    "onnx-fp32": Limits(max_error=5e-5),
    "onnx-fp16": replace(_HALF, size_ratio=0.51),
    "onnx-bf16": replace(_HALF, max_error=0.25, size_ratio=0.51),
    "onnx-fp16-emulated": _HALF,
    "onnx-bf16-emulated": replace(_HALF, max_error=0.25),
    "engine": replace(_HALF, verified=True),
    "cpu-bf16": replace(_HALF, max_error=0.25),
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
        counts: whether the bundle's verdict depends on it.
    """

    stage: str
    name: str
    limit: float | int | bool
    measured: float | int | bool | None
    passed: bool
    sentence: str
    counts: bool = True


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
        answers_differ: of a served model, what first differs from what the FP32 graph answers; empty where
            nothing does, None where that was not compared.
        as_planned: what first differs from the graph that the plan makes; empty where nothing does, None
            where that was not compared.
        as_exported: what first differs from the checkpoint; empty where nothing does, None for other stages.
        other_files: files of a served model that are not the bundle's; None where nothing is known of them.
    """

    measures: StageMetrics | None = None
    failure: str = ""
    size_ratio: float | None = None
    verified: bool | None = None
    consistency: Consistency | None = None
    other_files: Sequence[str] | None = None
    as_planned: str | None = None
    as_exported: str | None = None
    answers_differ: str | None = None


def limits_of(stage: str, limits: Mapping[str, Limits] = DEFAULTS) -> Limits:
    """A stage's limits; `triton-grpc` has those of `triton` unless it has its own."""
    return limits.get(stage) or limits.get(stage.partition("-")[0]) or Limits()


def limits_in_role(
    stage: str, limits: Mapping[str, Limits], *, is_reference: bool, serves: str
) -> tuple[Limits, bool]:
    """A stage's limits, and whether they are for its answers against those of what it serves.

    A served model that runs in 16 bits is held to what its graph or engine is held to, against FP32, except
    where the gates file has limits of its own for the served stage.

    Args:
        is_reference: whether all others are compared with this stage: against itself most gates would hold.
        serves: the stage whose graph or engine a served model runs; empty for others.
    """
    wanted = limits_of(stage, limits)
    if is_reference:
        kept = ("non_finite", "consistent", "adversarial", "as_exported")
        return Limits(**{name: getattr(wanted, name) for name in kept}), False
    if serves not in DEFAULTS or DEFAULTS[serves].unexplained_flips is None:
        return wanted, bool(serves)
    given = {name: value for name, value in vars(wanted).items() if value != vars(DEFAULTS["triton"])[name]}
    half = limits_of(serves, limits)
    # Logits that are off by x move no softmax by more than x / 2.
    bound = None if half.max_error is None else half.max_error / 2
    fitted = replace(half, size_ratio=None, verified=False, max_probability_error=bound)
    return replace(fitted, **given), False


def changed_limits(limits: Mapping[str, Limits], precision: str, stages: Sequence[str]) -> str:
    """How the limits of these stages differ from the built-in ones, in words; empty where they do not."""
    changes, usual = [], of_precision(DEFAULTS, precision)
    for stage in stages:
        known, given = vars(limits_of(stage, usual)), vars(limits_of(stage, limits))
        changes += [
            f"{stage} {name} {_shown(known[name], given[name])}"
            for name in known
            if known[name] != given[name]
        ]
    return ", ".join(changes)


def _shown(known: object, given: object) -> str:
    if given is None or given is False:
        return "off"
    if known is None or isinstance(given, bool):
        return "on" if isinstance(given, bool) else f"at most {given:g}"
    return f"at most {given:g} and not {known:g}"


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
    files = evidence.other_files
    if limits.same_files and files is not None:
        other = f"the served version has another {' and '.join(files)} than the bundle"
        sentence = other if files else "the served version has the bundle's graph and tokenizer"
        gates.append(Gate(stage, "same_files", True, not files, not files, sentence))
    difference = evidence.answers_differ
    if limits.same_answers and difference is not None:
        same = "the served model answers as the bundle's FP32 graph does"
        sentence = f"the served model answers otherwise than the FP32 graph: {difference}"
        gates.append(
            Gate(
                stage, "same_answers", True, not difference, not difference, sentence if difference else same
            )
        )
    difference = evidence.as_planned
    if limits.as_planned and difference is not None:
        made = "the graph is the one that its plan makes of model.onnx"
        sentence = f"the graph is not the one that its plan makes: {difference}" if difference else made
        gates.append(Gate(stage, "as_planned", True, not difference, not difference, sentence))
    difference = evidence.as_exported
    if limits.as_exported and difference is not None:
        made = "what the bundle has of the checkpoint is the checkpoint's"
        sentence = f"the bundle is not what the checkpoint exports to: {difference}" if difference else made
        gates.append(Gate(stage, "as_exported", True, not difference, not difference, sentence))
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
        if limit is not None and name == "max_error":
            limit *= metrics.allowance
        if limit is not None:
            shown = f"{value:.3g}" if math.isfinite(value) else "not finite"
            sentence = f"{words}: {shown}, at most {limit:g} allowed"
            yield Gate(stage, name, limit, finite(value), value <= limit, sentence)
    limit, points = limits.accuracy_points, metrics.accuracy_points
    if limit is not None and points is not None and metrics.correct is not None:
        # Of a few hundred texts one alone is more than a small limit: a near tie would fail the model.
        one = 100 / len(metrics.correct) if limit else 0
        allowed = f"{limit:g}" if limit >= one else f"{limit:g} or one of {len(metrics.correct)}"
        sentence = f"accuracy changed by {points:+.3g} points, {allowed} either way allowed"
        limit = max(limit, one)
        yield Gate(stage, "accuracy_points", limit, points, abs(points) <= limit, sentence)


def read_limits(given: Mapping[str, object] | Path | str | None, precision: str) -> Mapping[str, Limits]:
    """The limits of a run: those of a gates file, of a Python caller, or the built-in ones.

    Args:
        given: the file, or stage → `Limits`; None for the built-in limits.
        precision: see `of_precision`.

    Raises:
        InputError: the file cannot be read, or names an unknown stage or gate.
    """
    limits = override(read_toml(Path(given)), str(given)) if isinstance(given, (str, Path)) else given
    return of_precision(cast(Mapping[str, Limits], limits or DEFAULTS), precision)


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
