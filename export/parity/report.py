"""The report of a parity run: an HTML page, the same as JSON, and JUnit's XML."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from bertmp.core.hardware import machine
from bertmp.core.io import write_text
from bertmp.export.bundle import tool_versions
from bertmp.export.parity.certificate import CERTIFICATE
from bertmp.export.parity.gates import Gate
from bertmp.export.parity.model_card import MODEL_CARD
from bertmp.export.parity.result import ParityReport, StageReport
from bertmp.report import page

FILES = ("report.html", "report.json", "junit.xml", MODEL_CARD, CERTIFICATE)

_ARTEFACTS = {
    "torch-fp32": "checkpoint",
    "torch-amp": "checkpoint",
    "onnx-fp32": "model.onnx",
    "engine": "model.plan",
}
_VERBS = {
    "torch-amp": "autocast",
    "onnx-fp32": "export",
    "onnx-fp16": "convert",
    "onnx-bf16": "convert",
    "onnx-fp16-emulated": "round",
    "onnx-bf16-emulated": "round",
    "engine": "build",
    "triton": "deploy",
}
_MOST_FLIPS = 500
"""Rows of the table of changed labels; report.json has all of them."""

_GATE_NAMES = {
    "runs": "runs",
    "non_finite": "finite numbers",
    "max_error": "largest logit error",
    "max_probability_error": "largest probability error",
    "flips": "labels unchanged",
    "unexplained_flips": "flips within error",
    "accuracy_points": "accuracy",
    "size_ratio": "size of the 16-bit weights",
    "verified": "precision verified",
    "consistent": "self-consistent",
    "as_planned": "the plan's graph",
    "same_files": "the bundle's files",
    "adversarial": "adversarial inputs",
}


@dataclass(frozen=True)
class GateRow:
    """A gate as a row: `used` is the share of the limit that was used up, 0 to 1, None for a yes or no."""

    gate: Gate
    title: str
    measured: str
    limit: str
    used: float | None


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top of the page; `stage` names its stage, where that is not obvious."""

    figure: str
    caption: str
    stage: str = ""


def write_report(result: ParityReport, certificate: Mapping[str, Any], card: str) -> None:
    """Writes the files into the result's folder, each atomically, and the certificate into the bundle, too.

    All are made before the first is written, so that an error leaves no mixture of old and new. Other
    files in the folder stay.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    contents = {
        "report.json": _json(result.to_json()),
        MODEL_CARD: card,
        CERTIFICATE: _json(certificate),
        "junit.xml": junit_xml(result),
        "report.html": render(result),
    }
    for name, content in contents.items():
        write_text(result.folder / name, content)
    write_text(result.bundle / CERTIFICATE, contents[CERTIFICATE])


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render(result: ParityReport) -> str:
    """The HTML page."""
    series = _series(result)
    return page.render_page(
        "parity.html.j2",
        report=result,
        name=result.bundle.resolve().name,
        tiles=_tiles(result),
        scored=any(stage.task_metrics for stage in result.stages),
        infinity=math.inf,
        stages=[(stage, result.verdict_on(stage)) for stage in result.stages],
        gates=[_gate_row(gate) for gate in result.gates],
        chain=Markup(page.chain_chart(_chain(result))),
        distribution=Markup(page.histogram_chart(series)) if series else "",
        scatters=[(one.name, Markup(page.margin_chart(one))) for one in series],
        flips=result.flips[:_MOST_FLIPS],
        precisions=_shares(result.contents.precisions),
    )


def _chain(result: ParityReport) -> list[page.ChainLink]:
    data = result.data
    kind = "labelled" if data.labelled else "unlabelled"
    links = [page.ChainLink("data", data.file.name, f"{data.texts:,}", f"{kind} inputs")]
    contents = result.contents
    low, file = f"onnx-{contents.low_precision}", contents.low_graph or ""
    files = {**_ARTEFACTS, low: file, f"{low}-emulated": file}
    for stage in result.stages:
        subtitle = f"serves {stage.serves}" if stage.serves else files.get(stage.name, "")
        verb = _VERBS.get(stage.name) or _VERBS.get(stage.name.partition("-")[0], "")
        links.append(page.ChainLink(stage.name, subtitle, *_figure(stage), result.verdict_on(stage), verb))
    return links


def _figure(stage: StageReport) -> tuple[str, str]:
    if stage.status == "reference":
        return "FP32", "the reference"
    if stage.measures is None:
        verified = stage.verification.get("verified")
        return ("verified", f"not run: {stage.reason}") if verified else (stage.status, stage.reason)
    return page.scientific(stage.measures.max_error), "largest logit error"


def _series(result: ParityReport) -> list[page.ErrorSeries]:
    limits = {gate.stage: float(gate.limit) for gate in result.gates if gate.name == "max_error"}
    found = []
    for name, metrics in ((one.name, one.measures) for one in result.stages if one.status == "run"):
        if metrics is not None:
            flips = [(flip.margin, flip.error, flip.explained) for flip in metrics.flips]
            figures = (metrics.row_errors, metrics.margins, metrics.max_error)
            found.append(page.ErrorSeries(name, *figures, limits.get(name), flips))
    return found


def _tiles(result: ParityReport) -> list[Tile]:
    """Accuracy first, then the worst error, the flips, the file's size: what one asks first."""
    judged = {gate.stage for gate in result.gates}
    ran = [one for one in result.stages if one.status == "run" and one.name in judged]
    compared = {one.name: one.measures for one in ran if one.measures}
    reference = next((one for one in result.stages if one.status == "reference"), None)
    tiles = []
    if reference and reference.measures and reference.measures.accuracy is not None:
        tiles.append(Tile(f"{reference.measures.accuracy:.4f}", "accuracy of", reference.name))
        points = {name: metrics.accuracy_points or 0.0 for name, metrics in compared.items()}
        if worst := max(points, key=lambda name: abs(points[name]), default=""):
            change = points[worst]
            tiles.append(Tile(f"{change:+.2f} pt", "largest change of it", worst if change else ""))
    if errors := {name: metrics.max_error for name, metrics in compared.items()}:
        worst = max(errors, key=lambda name: errors[name])
        tiles.append(Tile(page.scientific(errors[worst]), "largest logit error", worst))
        changed = len({row.line for row in result.flips if row.stage in judged})
        tiles.append(Tile(str(changed), "examples whose label changed"))
    if (ratio := result.contents.size_ratio) is not None:
        low = result.contents.low_precision.upper()
        tiles.append(Tile(f"{ratio:.3f}", f"{low} file against FP32"))
    return tiles


def _gate_row(gate: Gate) -> GateRow:
    title = _GATE_NAMES.get(gate.name, gate.name)
    if isinstance(gate.limit, bool):
        return GateRow(gate, title, "yes" if gate.measured else "no", "yes", None)
    size = math.inf if gate.measured is None else abs(gate.measured)
    used = min(size / gate.limit, 1.0) if gate.limit else float(size > 0)
    measured = "not finite" if gate.measured is None else page.scientific(size)
    unit, sign = (" points", "±") if gate.name == "accuracy_points" else ("", "≤ ")
    return GateRow(gate, title, measured + unit, f"{sign}{page.scientific(gate.limit)}{unit}", used)


def _shares(precisions: Mapping[str, int]) -> list[tuple[str, int, float]]:
    total = sum(precisions.values())
    order = [kind for kind in ("fp16", "bf16", "fp32", "integer") if precisions.get(kind)]
    return [(kind, precisions[kind], 100 * precisions[kind] / total) for kind in order]


_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(result: ParityReport) -> str:
    """The document; stages without gates are one skipped case."""
    root = ElementTree.Element("testsuites", name="bertmp parity")
    for stage in result.stages:
        root.append(_suite(stage, result))
    if result.unchecked:
        root.append(_completeness(result))
    for count in ("tests", "failures", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", f"{result.seconds:.3f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _completeness(result: ParityReport) -> ElementTree.Element:
    """A case for each stage that counts and was not checked: a failure unless that is allowed."""
    suite = ElementTree.Element("testsuite", name="verdict", time="0", timestamp=result.created)
    for one in result.unchecked:
        case = ElementTree.SubElement(suite, "testcase", classname="parity.verdict", name=one.stage)
        if one.allowed:
            ElementTree.SubElement(case, "skipped", message=_clean(one.sentence()))
        else:
            ElementTree.SubElement(case, "failure", type="incomplete", message=_clean(one.sentence()))
    suite.set("tests", str(len(result.unchecked)))
    suite.set("failures", str(sum(not one.allowed for one in result.unchecked)))
    suite.set("skipped", str(sum(one.allowed for one in result.unchecked)))
    return suite


def _suite(stage: StageReport, result: ParityReport) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=stage.name, time=f"{stage.seconds:.3f}")
    suite.set("timestamp", result.created)
    gates = [gate for gate in result.gates if gate.stage == stage.name]
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{stage.name}", name=gate.name)
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = _clean(gate.sentence)
        else:
            ElementTree.SubElement(case, "failure", type="gate", message=_clean(gate.sentence))
    if not gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{stage.name}", name="runs")
        ElementTree.SubElement(case, "skipped", message=_clean(stage.reason or "no gate applies"))
    suite.set("tests", str(max(len(gates), 1)))
    suite.set("failures", str(sum(not gate.passed for gate in gates)))
    suite.set("skipped", str(int(not gates)))
    return suite


def _clean(words: str) -> str:
    """Without the characters that XML cannot hold, such as an error message's control codes."""
    return _NOT_XML.sub("�", words)


_TOOLS = (
    *("bertmp", "torch", "onnx", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-rtx", "tokenizers"),
)


def environment() -> dict[str, str]:
    """The machine and the versions that did the work, in words."""
    system = platform.platform(terse=True)
    return {"machine": str(machine()), "system": system, **tool_versions(_TOOLS)}
