"""The HTML page: what the template shows, already in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bertmp.export.parity.gates import Gate
from bertmp.export.parity.report.charts import (
    chain_picture,
    distribution_picture,
    scatter_picture,
)
from bertmp.export.parity.report.svg import scientific
from bertmp.export.parity.result import ParityReport, StageReport

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
    "size_ratio": "file size",
    "proven": "precision proven",
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
    """One of the figures at the top of the page; `stage` says where it is from, if that is not plain."""

    figure: str
    caption: str
    stage: str = ""


def render(result: ParityReport) -> str:
    """The whole page: no script, no font, no picture or style from elsewhere; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(scientific=scientific, megabytes=_megabytes, words=_words, label=_label)
    compared = [stage for stage in result.stages if stage.measures and stage.status == "run"]
    limits = {gate.stage: float(gate.limit) for gate in result.gates if gate.name == "max_error"}
    return environment.get_template("page.html.j2").render(
        report=result,
        name=result.bundle.resolve().name,
        tiles=_tiles(result),
        stages=[(stage, result.verdict(stage)) for stage in result.stages],
        gates=[_gate_row(gate) for gate in result.gates],
        chain=Markup(chain_picture(result)),
        distribution=Markup(distribution_picture(compared, limits)) if compared else "",
        scatters=[
            (stage, Markup(scatter_picture(stage, stage.measures))) for stage in compared if stage.measures
        ],
        flips=result.flips[:_MOST_FLIPS],
        precisions=_shares(result.facts.precisions),
    )


def _tiles(result: ParityReport) -> list[Tile]:
    """Accuracy first, then the worst error, the flips, the file's size: what one asks first."""
    compared = [stage for stage in result.stages if stage.measures and stage.status == "run"]
    return [*_accuracy_tiles(result, compared), *_error_tiles(result, compared)]


def _accuracy_tiles(result: ParityReport, compared: list[StageReport]) -> list[Tile]:
    reference = next((stage for stage in result.stages if stage.status == "reference"), None)
    if reference is None or reference.measures is None or reference.measures.accuracy is None:
        return []
    tiles = [Tile(f"{reference.measures.accuracy:.4f}", "accuracy of", reference.name)]
    points = {stage.name: stage.measures.accuracy_points for stage in compared if stage.measures}
    worst = max(points, key=lambda name: abs(points[name] or 0), default="")
    if worst:
        change = points[worst] or 0.0
        tiles.append(Tile(f"{change:+.2f} pt", "largest change of it", worst if change else ""))
    return tiles


def _error_tiles(result: ParityReport, compared: list[StageReport]) -> list[Tile]:
    errors = {stage.name: stage.measures.max_error for stage in compared if stage.measures}
    tiles = []
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        tiles.append(Tile(scientific(errors[worst]), "largest logit error", worst))
        tiles.append(Tile(str(len({row.line for row in result.flips})), "texts whose label changed"))
    if (ratio := result.facts.size_ratio) is not None:
        tiles.append(Tile(f"{ratio:.3f}", "FP16 file against FP32"))
    return tiles


def _gate_row(gate: Gate) -> GateRow:
    title = _GATE_NAMES.get(gate.name, gate.name)
    if isinstance(gate.limit, bool):
        return GateRow(gate, title, "yes" if gate.measured else "no", "yes", None)
    measured = "not finite" if gate.measured is None else scientific(abs(gate.measured))
    used = 1.0 if gate.measured is None else _share_used(abs(gate.measured), gate.limit)
    unit = " points" if gate.name == "accuracy_points" else ""
    sign = "±" if gate.name == "accuracy_points" else "≤ "
    return GateRow(gate, title, measured + unit, f"{sign}{scientific(gate.limit)}{unit}", used)


def _share_used(measured: float, limit: float) -> float:
    if limit == 0:
        return 0.0 if measured == 0 else 1.0
    return min(measured / limit, 1.0)


def _shares(precisions: Mapping[str, int]) -> list[tuple[str, int, float]]:
    total = sum(precisions.values())
    order = [kind for kind in ("fp16", "bf16", "fp32", "integer") if precisions.get(kind)]
    return [(kind, precisions[kind], 100 * precisions[kind] / total) for kind in order]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _label(key: str) -> str:
    return key.replace("_", " ")


def _words(value: Any) -> str:
    """A plain JSON value as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return scientific(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(item) for item in value) or "none"
    return str(value)
