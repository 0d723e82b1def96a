"""Two parity reports side by side: what differs, and what has become worse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable
from bertmp.core.options import keywords_of
from bertmp.export.parity.compare_options import CompareOptions
from bertmp.export.parity.report_reading import ReportFigures, ReportHead, StageFigures, read_report
from bertmp.metrics.comparison import LOWER_IS_BETTER
from bertmp.metrics.non_inferiority import MARGIN

ERROR_FACTOR = 2.0
"""An error is worse where it is more than this many times as large, ..."""
LIMIT_SHARE = 0.1
"""... and above this share of its gate's limit: below, it is far from mattering."""
ACCURACY_LOSS = 0.001
"""An accuracy is worse where it is lower by more than this: 0.1 percentage points."""

_ROUNDING = 1e-12
_LIMIT_OF = {"max_error": "max_error", "mean_error": "max_error"}
"""The gate whose limit says how large an error matters; one of its own where it is not named."""
_VERDICTS = ("passed", "incomplete", "failed")


@dataclass(frozen=True)
class Change(JsonSerializable):
    """One figure in both reports.

    Attributes:
        stage: the stage's name; empty for the verdict of the whole.
        name: the figure's name.
        before, after: its values; None where a report has none.
        worse: whether it is a regression.
        sentence: a regression in words; empty otherwise.
    """

    stage: str
    name: str
    before: float | bool | str | None
    after: float | bool | str | None
    worse: bool = False
    sentence: str = ""


@dataclass(frozen=True)
class ReportComparison(JsonSerializable):
    """Two reports side by side.

    Attributes:
        before, after: what the reports are about.
        regressions: the figures that have become worse, in the order of the chain.
        figures: all figures of every stage, in the order of the chain.
        notes: what limits the comparison.
    """

    before: ReportHead
    after: ReportHead
    regressions: tuple[Change, ...]
    figures: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether anything has become worse."""
        return bool(self.regressions)

    def to_json(self) -> dict[str, Any]:
        return {"worse": self.worse, **super().to_json()}


@keywords_of(CompareOptions)
def compare(options: CompareOptions) -> ReportComparison:
    """Compares two parity reports, the earlier one first.

    A regression is a worse verdict, a gate that fails and did not before, a stage that ran and no longer
    runs, or a figure that is worse by more than `ERROR_FACTOR`, `LIMIT_SHARE` and `ACCURACY_LOSS` allow.

    Raises:
        InputError: a report is missing, damaged or of another format, or they are about models for different
            tasks.
    """
    before, after = read_report(options.before), read_report(options.after)
    tasks = before.head.task, after.head.task
    if all(tasks) and tasks[0] != tasks[1]:
        what = f"the reports are about different tasks: {tasks[0]} and {tasks[1]}"
        raise InputError(what, after.head.file, "compare two reports on one task")
    return compare_figures(before, after)


def compare_figures(before: ReportFigures, after: ReportFigures) -> ReportComparison:
    """The same for two reports that have been read."""
    before, after = _matched(before, after), _matched(after, before)
    old, new = before.head.verdict, after.head.verdict
    worse = _VERDICTS.index(new) > _VERDICTS.index(old)
    figures = [Change("", "verdict", old, new, worse, f"parity has {old} and is now {new}" if worse else "")]
    for name in dict.fromkeys([*before.stages, *after.stages]):
        figures += _compare_stage(name, before.stages.get(name), after.stages.get(name))
    regressions = tuple(one for one in figures if one.worse)
    return ReportComparison(
        before.head, after.head, regressions, tuple(figures), tuple(_notes(before, after))
    )


def _matched(report: ReportFigures, other: ReportFigures) -> ReportFigures:
    """The report, its `triton` under the name of its protocol where the other one was asked over both."""
    named = {name: f"{name}-{stage.protocol}" for name, stage in report.stages.items()}
    stages = {
        named[name] if named[name] in other.stages and name not in other.stages else name: stage
        for name, stage in report.stages.items()
    }
    return replace(report, stages=stages)


def _notes(before: ReportFigures, after: ReportFigures) -> Iterator[str]:
    old, new = before.head, after.head
    if old.data_sha256 != new.data_sha256:
        yield (
            f"the reports are on different data: {old.data} ({old.texts:,} texts) and {new.data} "
            f"({new.texts:,} texts), so a difference may be the data's"
        )
    if old.labels != new.labels and old.task and new.task:
        yield "the models have different labels, so their labels and metrics are not the same question"
    if old.reference != new.reference:
        references = " and ".join(head.reference or "nothing" for head in (old, new))
        yield f"the reports are measured against different stages: {references}"
    for name, stage in after.stages.items():
        earlier = before.stages.get(name)
        if earlier is None or not (earlier.ran and stage.ran):
            continue
        for gate, decided in earlier.gates.items():
            if gate == "runs":
                continue
            now = stage.gates.get(gate)
            if now is None:
                yield f"{name}: the gate {gate} is no longer applied"
            elif now.limit != decided.limit:
                yield f"{name}: the limit of {gate} was {decided.limit:g} and is now {now.limit:g}"


_ABSENT = StageFigures("", "not run", False, "it is no part of the chain", {}, None, None, {}, {})


def _compare_stage(name: str, old: StageFigures | None, new: StageFigures | None) -> Iterator[Change]:
    old, new = old or _ABSENT, new or _ABSENT
    yield _stage_verdict(name, old, new)
    for gate, decided in new.gates.items():
        known = old.gates.get(gate)
        if not decided.passed and (known is None or known.passed):
            sentence = f"{name}: the gate {gate} fails and did not before: {decided.sentence}"
            yield Change(name, f"gate {gate}", None if known is None else "passed", "failed", True, sentence)
    for measure in ("max_error", "mean_error", "max_probability_error"):
        yield from _error(name, measure, old, new)
    values = [_values(one) for one in (old, new)]
    for measure in dict.fromkeys([*values[0], *values[1]]):
        sides = values[0].get(measure), values[1].get(measure)
        loss = _loss(measure, old, new) if None not in sides else ""
        yield Change(name, measure, *sides, bool(loss), f"{name}: {loss}" if loss else "")
    for metric in dict.fromkeys([*old.task_metrics, *new.task_metrics]):
        yield _task_metric(name, metric, old, new)


def _stage_verdict(name: str, old: StageFigures, new: StageFigures) -> Change:
    sentence = ""
    if old.ran and not new.ran:
        sentence = f"{name}: it ran and no longer runs: {new.reason}"
    elif old.verdict == "verified" and new.verdict == "not run":
        sentence = f"{name}: its precision was verified and no longer is: {new.reason}"
    return Change(name, "verdict", old.verdict, new.verdict, bool(sentence), sentence)


def _error(name: str, measure: str, old: StageFigures, new: StageFigures) -> Iterator[Change]:
    """An error; what the gate measured where there is one, which is a served model against its own graph."""
    gate = _LIMIT_OF.get(measure, measure)
    gates = [one.gates.get(gate) for one in (old, new)]
    decided = [one for one in gates if one is not None]
    sides = old.measures.get(measure), new.measures.get(measure)
    if measure == gate and len(decided) == 2:
        sides = decided[0].measured, decided[1].measured
    before, after = sides
    if before is None and after is None:
        return
    sentence = ""
    if before is not None and after is not None and decided:
        # The stricter limit: loosening one must not hide what it lets pass.
        limit = min(one.limit for one in decided)
        if after > ERROR_FACTOR * before and after > LIMIT_SHARE * limit:
            words = measure.replace("_", " ")
            sentence = f"{name}: {words} {before:.3g} is now {after:.3g} (limit {limit:g})"
    yield Change(name, measure, before, after, bool(sentence), sentence)


def _values(stage: StageFigures) -> dict[str, float | bool | None]:
    """The measures that have rules of their own."""
    shown: dict[str, float | bool | None] = {
        measure: stage.measures[measure]
        for measure in ("flips", "accuracy", "non_finite")
        if measure in stage.measures
    }
    others = {"size_ratio": stage.size_ratio, "consistent": stage.consistent}
    return {**shown, **{measure: value for measure, value in others.items() if value is not None}}


def _loss(measure: str, old: StageFigures, new: StageFigures) -> str:
    """How a measure that both have became worse, in words; empty where it did not."""
    if measure == "consistent":
        lost = bool(old.consistent) and not new.consistent
        return "its answers agreed with each other and no longer do" if lost else ""
    if measure == "size_ratio":  # the gate alone says how large is too large
        return ""
    before, after = old.measures[measure], new.measures[measure]
    if measure == "accuracy":
        lost = not after >= before - ACCURACY_LOSS - _ROUNDING
        return f"accuracy {before:.4f} is now {after:.4f}" if lost else ""
    if measure == "non_finite":
        return f"{after:g} numbers are NaN or infinite, {before:g} were" if after > before else ""
    # Shares: on the same data the same as numbers, and on other data still comparable.
    if after * old.measures["units"] <= before * new.measures["units"]:
        return ""
    units = [one.measures["units"] for one in (new, old)]
    return f"{after:g} of {units[0]:g} labels change, {before:g} of {units[1]:g} did"


def _task_metric(name: str, metric: str, old: StageFigures, new: StageFigures) -> Change:
    """A metric of the task: worse beyond the margin, or newly judged worse than the reference's."""
    one, two = old.task_metrics.get(metric), new.task_metrics.get(metric)
    sides = (None if one is None else one.value, None if two is None else two.value)
    sentence = ""
    if one is not None and two is not None:
        loss = two.value - one.value if metric in LOWER_IS_BETTER else one.value - two.value
        margin = ACCURACY_LOSS if metric == "accuracy" else MARGIN * abs(one.value)
        known = metric == "accuracy" and "accuracy" in new.measures  # judged there, not twice
        if not known and not math.isnan(one.value) and not loss <= margin + _ROUNDING:
            sentence = f"{name}: {metric} {one.value:.4g} is now {two.value:.4g}"
        elif two.verdict == "worse" != one.verdict:
            sentence = f"{name}: {metric} is now worse than the reference's and was {one.verdict}"
    return Change(name, f"metric {metric}", *sides, bool(sentence), sentence)
