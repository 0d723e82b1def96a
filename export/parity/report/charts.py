"""The report's pictures: the chain, the errors' distribution, the errors against the margins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bertmp.export.parity.report.svg import LogScale, box, line, picture, power, scientific, shorten, text
from bertmp.export.parity.result import ParityReport, StageReport
from bertmp.export.parity.stage_metrics import Measures

_ARTEFACTS = {
    "torch-fp32": "checkpoint",
    "onnx-fp32": "model.onnx",
    "onnx-fp16": "model.fp16.onnx",
    "engine": "model.plan",
}
_VERBS = {"onnx-fp32": "export", "onnx-fp16": "convert", "engine": "build", "triton": "deploy"}
_MARKS = {"passed": "✓", "proven": "✓", "failed": "✗", "reference": "●", "not run": "…"}


# ---- the chain


def chain_picture(result: ParityReport) -> str:
    """Text → checkpoint → graphs → engine → Triton, each with its verdict and its error."""
    wide, high, gap = 148.0, 104.0, 52.0
    parts = [_texts_box(result, wide, high)]
    for place, stage in enumerate(result.stages, 1):
        x = place * (wide + gap)
        parts.append(_arrow(x - gap, x, high / 2 + 16, _verb(stage.name)))
        parts.append(_stage_box(stage, result.verdict(stage), x, wide, high))
    width = len(result.stages) * (wide + gap) + wide
    return picture(width + 2, high + 34, "The chain and the verdict on each stage", parts)


def _verb(stage: str) -> str:
    return _VERBS.get(stage) or _VERBS.get(stage.partition("-")[0], "")


def _texts_box(result: ParityReport, wide: float, high: float) -> str:
    data = result.data
    lines = [
        text(14, 42, "texts", "name"),
        text(14, 62, shorten(data.file.name, 20), "small"),
        text(14, 90, f"{data.texts:,}", "figure"),
        text(14, 108, "labelled" if data.labelled else "unlabelled", "small"),
    ]
    return box(1, 16, wide, high, "node plain", 10) + "".join(lines)


def _stage_box(stage: StageReport, verdict: str, x: float, wide: float, high: float) -> str:
    kind = verdict.replace(" ", "-")
    subtitle = f"serves {stage.serves}" if stage.serves else _ARTEFACTS.get(stage.name, "")
    figure, caption = _figure(stage)
    return "".join(
        (
            box(x, 16, wide, high, f"node {kind}", 10),
            text(x + 14, 42, stage.name, "name"),
            text(x + wide - 14, 42, _MARKS.get(verdict, ""), f"mark {kind}", "end"),
            text(x + 14, 62, shorten(subtitle, 20), "small"),
            text(x + 14, 90, figure, "figure"),
            text(x + 14, 108, shorten(caption, 22), "small"),
        )
    )


def _figure(stage: StageReport) -> tuple[str, str]:
    if stage.status == "reference":
        return "FP32", "the reference"
    if stage.measures is None:
        proven = stage.proof.get("proven")
        return ("proven", f"not run: {stage.reason}") if proven else (stage.status, stage.reason)
    return scientific(stage.measures.max_error), "largest logit error"


def _arrow(start: float, end: float, y: float, verb: str) -> str:
    head = f'<path d="M{end - 9:.1f} {y - 4.5:.1f}l7 4.5l-7 4.5" class="head"/>'
    return (
        line(start + 4, y, end - 3, y, "arrow")
        + head
        + text((start + end) / 2, y - 9, verb, "small", "middle")
    )


# ---- the distribution of the errors


def distribution_picture(stages: Sequence[StageReport], limits: Mapping[str, float]) -> str:
    """A histogram a stage over one logarithmic axis of row errors, with the gate's limit if any."""
    left, right, row = 118.0, 940.0, 90.0
    measured = [(stage, stage.measures) for stage in stages if stage.measures is not None]
    values = [float(value) for _, measures in measured for value in _extent(measures)]
    scale = LogScale.over(
        [*values, *(limits[stage.name] for stage, _ in measured if stage.name in limits)], left, right
    )
    bottom = 14 + row * len(measured)
    parts = [line(scale(10.0**tick), 8, scale(10.0**tick), bottom, "grid") for tick in scale.decades()]
    for place, (stage, measures) in enumerate(measured):
        base = 8 + row * (place + 1) - 12
        parts.append(_histogram(stage.name, measures, scale, base, row - 38, limits.get(stage.name)))
    parts += [text(scale(10.0**tick), bottom + 16, power(tick), "tick", "middle") for tick in scale.decades()]
    parts.append(text((left + right) / 2, bottom + 36, "largest logit error of a text", "tick", "middle"))
    return picture(960, bottom + 44, "Distribution of the logit errors, stage by stage", parts)


def _extent(measures: Measures) -> list[float]:
    positive = measures.row_errors[(measures.row_errors > 0) & np.isfinite(measures.row_errors)]
    return [float(positive.min()), float(positive.max())] if len(positive) else []


def _histogram(
    name: str, measures: Measures, scale: LogScale, base: float, height: float, limit: float | None
) -> str:
    places = np.array([scale(float(value)) for value in measures.row_errors if math.isfinite(value)])
    edges = np.linspace(scale.start, scale.end, 12 * (scale.high - scale.low) + 1)
    counts, _ = np.histogram(places, edges)
    tallest = max(int(counts.max()), 1)
    bars = [
        box(x + 0.5, base - height * count / tallest, step - 1, height * count / tallest, "bar", 1)
        for x, step, count in zip(edges[:-1], np.diff(edges), counts, strict=True)
        if count
    ]
    parts = [text(0, base - 2, name, "name"), line(scale.start, base, scale.end, base, "axis"), *bars]
    if math.isfinite(measures.max_error):
        x = scale(measures.max_error)
        parts += [line(x, base - height, x, base, "worst")]
        parts += [text(x + 5, base - height + 9, f"max {scientific(measures.max_error)}", "small")]
    if limit is not None:
        x = scale(limit)
        parts += [line(x, base - height - 16, x, base, "limit")]
        parts += [text(x - 5, base - height - 8, f"limit {scientific(limit)}", "small limit", "end")]
    return "".join(parts)


# ---- errors against margins

_MOST_POINTS = 2000


def scatter_picture(stage: StageReport, measures: Measures) -> str:
    """Each text by the reference's margin and the stage's error; what lies in the band might flip."""
    width, height, left, bottom = 400.0, 290.0, 58.0, 240.0
    x = LogScale.over((float(value) for value in measures.margins), left, width - 12)
    errors = LogScale.over((float(value) for value in measures.row_errors), bottom, 18)
    parts = [box(left, 18, x(2 * measures.max_error) - left, bottom - 18, "band")]
    if measures.max_error >= 10.0**x.low / 2:
        parts.append(text(left + 6, 32, "an error could tip these", "small"))
    parts += [line(x(10.0**tick), 18, x(10.0**tick), bottom, "grid") for tick in x.decades(7)]
    parts += [
        line(left, errors(10.0**tick), width - 12, errors(10.0**tick), "grid") for tick in errors.decades(6)
    ]
    parts += [text(x(10.0**tick), bottom + 17, power(tick), "tick", "middle") for tick in x.decades(7)]
    parts += [
        text(left - 8, errors(10.0**tick) + 4, power(tick), "tick", "end") for tick in errors.decades(6)
    ]
    parts.append(_points(measures, x, errors))
    parts += [_diamond(x(flip.margin), errors(flip.error), flip.explained) for flip in measures.flips]
    parts.append(
        text((left + width) / 2, bottom + 38, "margin between the two best FP32 logits", "tick", "middle")
    )
    parts.append(f'<g transform="rotate(-90 14 {(bottom + 18) / 2:g})">')
    parts.append(text(14, (bottom + 18) / 2, "logit error", "tick", "middle") + "</g>")
    return picture(width, height, f"{stage.name}: error against margin", parts)


def _points(measures: Measures, x: LogScale, errors: LogScale) -> str:
    """All texts as one path of round dots: far smaller than a circle each."""
    step = max(1, -(-measures.texts // _MOST_POINTS))
    dots = "".join(
        f"M{x(float(margin)):.1f} {errors(float(error)):.1f}h0"
        for margin, error in zip(measures.margins[::step], measures.row_errors[::step], strict=True)
        if math.isfinite(margin) and math.isfinite(error)
    )
    return f'<path d="{dots}" class="dots"/>'


def _diamond(x: float, y: float, explained: bool) -> str:
    kind = "flip explained" if explained else "flip"
    return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" class="{kind}"/>'
