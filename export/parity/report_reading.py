"""Reads the figures of a parity report back from `report.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable, read_json
from bertmp.export.parity.result import FORMAT, StageVerdict, Status
from bertmp.export.parity.verdict import Verdict

_NAME = "report.json"
_PLACES = (_NAME, f"parity/{_NAME}")
"""Where a folder or a bundle holds its report."""


@dataclass(frozen=True)
class GateFigures:
    """A gate as decided: its limit, what was measured (infinity for a number that was not finite), and
    whether the limit was kept, in words as well."""

    limit: float
    measured: float
    passed: bool
    sentence: str


@dataclass(frozen=True)
class MetricFigures:
    """A metric of the task: the stage's value, and whether it is as good as the reference's."""

    value: float
    verdict: str


@dataclass(frozen=True)
class StageFigures:
    """The figures of one stage.

    Attributes:
        name, verdict: as on the page.
        ran: whether it gave answers.
        reason: why it did not run, or the line that it failed with.
        measures: name → number; infinity for a number that was not finite; empty where nothing was measured.
        size_ratio, consistent: as in the report; None where the stage has none.
        gates: gate → decision.
        task_metrics: metric → its value here.
        protocol: of a served model, how it was asked; empty for other stages.
    """

    name: str
    verdict: StageVerdict
    ran: bool
    reason: str
    measures: Mapping[str, float]
    size_ratio: float | None
    consistent: bool | None
    gates: Mapping[str, GateFigures]
    task_metrics: Mapping[str, MetricFigures]
    protocol: str = ""


@dataclass(frozen=True)
class ReportHead(JsonSerializable):
    """What a report is about.

    Attributes:
        file, verdict, reference: as in the report.
        data, data_sha256, texts: the examples' file, its fingerprint and their number.
        created: ISO 8601, UTC.
        task, labels: the model's; empty in a report that does not say.
    """

    file: Path
    verdict: Verdict
    reference: str
    data: str
    data_sha256: str
    texts: int
    created: str
    task: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportFigures:
    """A report's head and its stages in their order."""

    head: ReportHead
    stages: Mapping[str, StageFigures]


def read_report(path: Path) -> ReportFigures:
    """Reads a parity report.

    Args:
        path: `report.json`, or a folder or bundle that holds one.

    Raises:
        InputError: there is none, it is no parity report, of another format, or damaged.
    """
    file = _locate(path)
    raw = read_json(file)
    todo = "name the report.json that `bertmp parity` wrote"
    if not isinstance(raw, dict) or not {"format", "stages", "gates"} <= raw.keys():
        raise InputError("not a parity report", file, todo)
    if raw["format"] != FORMAT:
        what = f"a parity report of format {raw['format']}, not {FORMAT}"
        raise InputError(what, file, "run `bertmp parity` again with this version")
    try:
        return _figures(file, raw)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        todo = "run `bertmp parity` again"
        raise InputError("the parity report is damaged", file, f"{todo} ({error!r})") from error


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    for place in _PLACES:
        if (path / place).is_file():
            return path / place
    raise InputError(f"no {' or '.join(_PLACES)}", path, "run `bertmp parity`, or name its report.json")


def _figures(file: Path, raw: Mapping[str, Any]) -> ReportFigures:
    data = raw["data"]
    words = [raw["reference"], data["file"], data["sha256"], raw["created"]]
    reference, source, sha256, created = (_checked(word, str) for word in words)
    verdict = cast(Verdict, _one_of(raw["verdict"], get_args(Verdict)))
    about = raw.get("bundle_summary", {})
    model = _checked(about.get("task", ""), str), tuple(map(str, about.get("labels", ())))
    texts = _checked(data["texts"], int)
    head = ReportHead(file, verdict, reference, source, sha256, texts, created, *model)
    gates: dict[str, dict[str, GateFigures]] = {}
    for gate in raw["gates"]:
        numbers = _number(gate["limit"]), _number(gate["measured"])
        decided = GateFigures(*numbers, _checked(gate["passed"], bool), _checked(gate["sentence"], str))
        gates.setdefault(gate["stage"], {})[gate["name"]] = decided
    stages = {stage["name"]: _stage(stage, gates.get(stage["name"], {})) for stage in raw["stages"]}
    return ReportFigures(head, stages)


_MEASURES = ("max_error", "mean_error", "max_probability_error", "flips", "non_finite", "units")


def _stage(raw: Mapping[str, Any], gates: Mapping[str, GateFigures]) -> StageFigures:
    status, measured, found = raw["status"], raw["measures"], raw["consistency"]
    _one_of(status, get_args(Status))
    measures = {name: _number(measured[name]) for name in _MEASURES} if measured else {}
    if measured and measured["accuracy"] is not None:
        measures["accuracy"] = _number(measured["accuracy"])
    judged: StageVerdict = "passed" if gates else "not judged"
    verdict: StageVerdict = judged if status == "run" else cast(StageVerdict, status)
    if status == "not run" and raw["verification"].get("verified"):
        verdict = "verified"
    if not all(gate.passed for gate in gates.values()):
        verdict = "failed"
    return StageFigures(
        name=_checked(raw["name"], str),
        verdict=verdict,
        ran=status in ("run", "reference"),
        reason=_checked(raw["reason"], str),
        measures=measures,
        size_ratio=None if raw["size_ratio"] is None else _number(raw["size_ratio"]),
        consistent=None if found is None else all(_checked(one["passed"], bool) for one in found["results"]),
        gates=gates,
        task_metrics={
            metric["name"]: MetricFigures(_number(metric["after"]), metric["non_inferiority"]["verdict"])
            for metric in raw["task_metrics"]
        },
        protocol=str(raw["details"].get("protocol", "")),
    )


def _number(value: Any) -> float:
    """A number; null stands for one that was not finite, as does the text `nan` or `inf`."""
    return math.inf if value is None else float(value)


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} where a {kind.__name__} belongs")
    return value


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} where one of {', '.join(known)} belongs")
    return str(value)
