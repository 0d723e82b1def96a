"""A parity report as an HTML page: which figures stand where, and in which words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from bertmp.export.consistency.check import CheckResult
from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.parity.adversarial_findings import KindRow
from bertmp.export.parity.block_errors import BlockErrors
from bertmp.export.parity.confusion import Confusion
from bertmp.export.parity.cpu_bf16_stage import CPU_BF16
from bertmp.export.parity.gates import Gate
from bertmp.export.parity.result import ParityReport, StageReport
from bertmp.export.parity.torch_stages import TORCH_AMP
from bertmp.metrics.comparison import LOWER_IS_BETTER, MetricComparison
from bertmp.report import charts, page, tables

_ARTEFACTS = {
    "torch-fp32": "checkpoint",
    "torch-amp": "checkpoint",
    "onnx-fp32": "model.onnx",
    "engine": "model.plan",
    "cpu-bf16": "model.onnx",
}
_VERBS = {
    "onnx-fp32": "export",
    "onnx-fp16": "convert",
    "onnx-bf16": "convert",
    "engine": "build",
    "triton": "deploy",
}
MOST_FLIPS = 500
"""Rows of the table of changed labels; report.json has all of them."""
_MOST_CHARACTERS = 400
"""Of a text in that table."""

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
    "as_exported": "the checkpoint's bundle",
    "same_files": "the bundle's files",
    "same_answers": "the graph's answers",
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


@dataclass(frozen=True)
class MetricRow:
    """One metric of one stage, and the picture of its difference."""

    stage: str
    metric: MetricComparison
    picture: Markup


@dataclass(frozen=True)
class BlockRow:
    """A block of the map of errors: its name without what all names share, its cells, its headroom."""

    name: str
    full_name: str
    cells: list[tables.HeatCell]
    headroom: str


@dataclass(frozen=True)
class CheckRow:
    """Checks of one kind on one stage: one that failed, or all that passed, of which the worst is shown."""

    stage: str
    shapes: str
    worst: CheckResult


@dataclass(frozen=True)
class KindTable:
    """The adversarial inputs: a row for each kind, a column for each stage.

    Attributes:
        stages: the columns.
        rows: kind → how many inputs it has, and what each stage made of them; None where it was not asked.
        failed: the rows to explain.
    """

    stages: list[str]
    rows: dict[str, tuple[int, list[KindRow | None]]]
    failed: list[KindRow]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as cells, and whose answers it counts."""

    stage: str
    rows: list[tuple[str, list[tables.HeatCell]]]


def render(result: ParityReport) -> str:
    """The HTML page."""
    series = _series(result)
    axis = charts.error_axis(series)
    return page.render_page(
        "parity.html.j2",
        report=result,
        name=result.bundle.resolve().name,
        tiles=_tiles(result),
        stages=[(stage, result.verdict_on(stage)) for stage in result.stages],
        gates=[_gate_row(gate) for gate in result.gates],
        kinds=_kind_table(result),
        chain=_chain(result),
        checks=_check_rows(result),
        blocks=_block_rows(result.block_errors),
        histograms=[(one.name, Markup(charts.histogram_chart(one, axis))) for one in series],
        scatters=[(one.name, Markup(charts.margin_chart(one))) for one in series if one.has_margins],
        flips=[(row, page.shorten(row.text, _MOST_CHARACTERS)) for row in result.flips[:MOST_FLIPS]],
        metrics=_metric_rows(result),
        confusion=result.confusion,
        matrices=_matrices(result.confusion) if result.confusion else [],
        precisions=_shares(result.contents.precisions),
    )


def _chain(result: ParityReport) -> list[tables.ChainLink]:
    data = result.data
    kind = "labelled" if data.labelled else "unlabelled"
    links = [tables.ChainLink("data", data.file.name, f"{data.texts:,}", f"{kind} inputs")]
    contents = result.contents
    low, file = f"onnx-{contents.low_precision}", contents.low_graph or ""
    files = {**_ARTEFACTS, low: file, f"{low}-emulated": file}
    for stage in result.stages:
        subtitle = f"serves {stage.serves}" if stage.serves else files.get(stage.name, "")
        verb = _VERBS.get(stage.name) or _VERBS.get(stage.name.partition("-")[0], "")
        aside = stage.name in (TORCH_AMP, CPU_BF16) or stage.name.endswith("-emulated")
        verdict = result.verdict_on(stage)
        links.append(tables.ChainLink(stage.name, subtitle, *_figure(stage), verdict, verb, aside))
    return links


def _figure(stage: StageReport) -> tuple[str, str]:
    if stage.status == "reference":
        return "FP32", "the reference"
    if stage.measures is None:
        verified = stage.verification.get("verified")
        return ("verified", f"not run: {stage.reason}") if verified else (stage.status, stage.reason)
    return page.scientific(stage.measures.max_error), "largest logit error"


def _series(result: ParityReport) -> list[charts.ErrorSeries]:
    limits = {gate.stage: float(gate.limit) for gate in result.gates if gate.name == "max_error"}
    found = []
    for name, metrics in ((one.name, one.measures) for one in result.stages if one.status == "run"):
        if metrics is not None:
            flips = [(flip.margin, flip.error, flip.explained) for flip in metrics.flips]
            figures = (metrics.row_errors, metrics.margins, metrics.max_error)
            found.append(charts.ErrorSeries(name, *figures, limits.get(name), flips))
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
        tiles.append(Tile(f"{changed:,}", "examples whose label changed"))
    if (ratio := result.contents.size_ratio) is not None:
        low = result.contents.low_precision.upper()
        tiles.append(Tile(f"{ratio:.3f}", f"{low} file against FP32"))
    return tiles


def _gate_row(gate: Gate) -> GateRow:
    title = _GATE_NAMES.get(gate.name, page.label(gate.name))
    if isinstance(gate.limit, bool):
        return GateRow(gate, title, "yes" if gate.measured else "no", "yes", None)
    size = math.inf if gate.measured is None else abs(gate.measured)
    used = min(size / gate.limit, 1.0) if gate.limit else float(size > 0)
    measured = "not finite" if gate.measured is None else page.scientific(size)
    unit, sign = (" points", "±") if gate.name == "accuracy_points" else ("", "≤ ")
    return GateRow(gate, title, measured + unit, f"{sign}{page.scientific(gate.limit)}{unit}", used)


def _kind_table(result: ParityReport) -> KindTable | None:
    if result.adversarial is None:
        return None
    found, stages = result.adversarial.rows, [one.stage for one in result.adversarial.stages]
    cells = {(row.kind, row.stage): row for row in found}
    rows = {}
    for kind in dict.fromkeys(row.kind for row in found):
        of_kind = [cells.get((kind, stage)) for stage in stages]
        rows[kind] = (max(row.asked for row in of_kind if row), of_kind)
    return KindTable(stages, rows, [row for row in found if not row.passed])


def _check_rows(result: ParityReport) -> list[CheckRow]:
    """Every check that failed; of those that passed, one row for each kind and stage."""
    rows = []
    for stage in result.stages:
        found = stage.consistency.results if stage.consistency else ()
        for name in dict.fromkeys(one.check for one in found):
            of_kind = [one for one in found if one.check == name]
            rows += [CheckRow(stage.name, one.shape, one) for one in of_kind if not one.passed]
            if passed := [one for one in of_kind if one.passed]:
                worst = max(passed, key=lambda one: one.difference / one.bound if one.bound else 0.0)
                shapes = worst.shape if len(passed) == 1 else f"{worst.shape}, the worst of {len(passed)}"
                rows.append(CheckRow(stage.name, shapes, worst))
    return rows


def _block_rows(found: BlockErrors) -> list[BlockRow]:
    """The map's rows; none where nothing was measured."""
    first = found.blocks[0].split(".")[0] + "." if found.blocks else ""
    return [
        BlockRow(
            name=block.removeprefix(first).removeprefix("encoder.").replace("layer.", "layer "),
            full_name=block,
            cells=tables.error_cells(errors, LOW_TYPES[found.precision].roundoff),
            headroom="∞"
            if math.isinf(headroom)
            else f"{headroom:,.3g}"
            if headroom < 1000
            else f"{headroom:,.0f}",
        )
        for block, errors, headroom in zip(found.blocks, found.errors, found.headroom, strict=True)
    ]


def _metric_rows(result: ParityReport) -> list[MetricRow]:
    """Every stage's metrics, each with its interval; the same metric has the same axis on every stage."""
    compared = [(stage.name, one) for stage in result.stages for one in stage.task_metrics]
    ends: dict[str, list[float]] = {}
    for _, one in compared:
        found = one.non_inferiority
        ends.setdefault(one.name, []).extend((found.difference.low, found.difference.high, found.margin))
    rows = []
    for stage, one in compared:
        found, scale = one.non_inferiority, charts.IntervalScale.over(ends[one.name])
        margin = found.margin if one.name in LOWER_IS_BETTER else -found.margin
        difference = found.difference
        interval = (difference.low, difference.estimate, difference.high)
        rows.append(MetricRow(stage, one, Markup(charts.interval_chart(*interval, margin, scale))))
    return rows


def _matrices(found: Confusion) -> list[Matrix]:
    """The reference's matrix and the stage's; none where the classes are too many."""
    if not found.has_matrix:
        return []
    before, after = tables.count_cells(found.before), tables.count_cells(found.after, found.before)
    return [
        Matrix(stage, list(zip(found.classes, cells, strict=True)))
        for stage, cells in ((found.reference, before), (found.stage, after))
    ]


def _shares(precisions: Mapping[str, int]) -> list[tuple[str, int, float]]:
    total = sum(precisions.values())
    order = [kind for kind in ("fp16", "bf16", "fp32", "integer") if precisions.get(kind)]
    return [(kind, precisions[kind], 100 * precisions[kind] / total) for kind in order]
