"""The charts of a report as inline SVG; their texts are escaped, their colours are the page's.

All are drawn about 400 units wide, so that their words can be read on a phone without zooming; on a wide page
several stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertmp.report.page import power, scientific
from bertmp.report.svg import LogScale, box, line, picture, text

MOST_POINTS = 2000
"""Points of a scatter plot; of more inputs, every second or third is drawn, and so on."""

_WIDTH, _ROOM = 400.0, 115.0


@dataclass(frozen=True)
class ErrorSeries:
    """A stage's errors.

    Attributes:
        name: the stage.
        errors: the largest error of each input, FP64 `[inputs]`.
        margins: the distance of the reference's two best logits, FP64 `[inputs]`.
        largest: the largest finite error, or infinity.
        limit: the gate's limit; None where there is none.
        flips: margin, error and whether the error explains it, for each label that changed.
    """

    name: str
    errors: np.ndarray
    margins: np.ndarray
    largest: float
    limit: float | None = None
    flips: Sequence[tuple[float, float, bool]] = ()

    @property
    def has_margins(self) -> bool:
        """Whether there are labels that an error could change."""
        return bool(np.isfinite(self.margins).any())


def error_axis(series: Sequence[ErrorSeries]) -> LogScale:
    """One axis for the histograms of all stages, so that they can be compared."""
    values = [value for one in series for value in (*_extent(one.errors), one.limit) if value is not None]
    return LogScale.over(values, 14, _WIDTH - 14)


def _extent(errors: np.ndarray) -> list[float]:
    positive = errors[(errors > 0) & np.isfinite(errors)]
    return [float(positive.min()), float(positive.max())] if len(positive) else []


def histogram_chart(series: ErrorSeries, scale: LogScale) -> str:
    """How many inputs have an error of which size, with the largest and the gate's limit if any."""
    top, base = 44.0, 128.0
    parts = []
    for tick in scale.decades(7):
        x = scale(10.0**tick)
        anchor = "start" if x < scale.start + 10 else "end" if x > scale.end - 10 else "middle"
        parts += [line(x, top, x, base, "grid"), text(x, base + 17, power(tick), "tick", anchor)]
    parts.append(line(scale.start, base, scale.end, base, "axis"))
    parts += _bars(series, scale, top, base)
    limit = None if series.limit is None else scale(series.limit)
    if math.isfinite(series.largest):
        x, words = scale(series.largest), f"max {scientific(series.largest)}"
        # Away from the limit's line, where the words do not cover it.
        to_left = limit is not None and x < limit < x + _ROOM < _WIDTH and x > _ROOM
        parts += _marked(x, top - 14, base, words, "worst", to_left=to_left or x > _WIDTH / 2)
    if limit is not None:
        words = f"limit {scientific(series.limit or 0)}"
        parts += _marked(limit, top - 30, base, words, "limit", to_left=limit > _WIDTH / 2)
    return picture(_WIDTH, base + 24, f"{series.name}: distribution of the logit errors", parts)


def _bars(series: ErrorSeries, scale: LogScale, top: float, base: float) -> list[str]:
    finite = series.errors[np.isfinite(series.errors)]
    places = np.array([scale(float(value)) for value in finite])
    edges = np.linspace(scale.start, scale.end, max(24, 8 * (scale.high - scale.low)) + 1)
    counts, _ = np.histogram(places, edges)
    tallest = max(int(counts.max()), 1)
    heights = (base - top) * counts / tallest
    return [
        box(x + 0.5, base - height, step - 1, height, "bar", 1)
        for x, step, height in zip(edges[:-1], np.diff(edges), heights, strict=True)
        if height
    ]


def _marked(x: float, top: float, base: float, words: str, kind: str, *, to_left: bool) -> list[str]:
    """A vertical line with its words beside its upper end."""
    anchor, off = ("end", -5) if to_left else ("start", 5)
    return [line(x, top, x, base, kind), text(x + off, top + 10, words, f"small {kind}", anchor)]


def margin_chart(series: ErrorSeries) -> str:
    """Each input by the reference's margin and the stage's error; what lies in the band might flip."""
    width, height, left, bottom = _WIDTH, 290.0, 58.0, 240.0
    x = LogScale.over((float(value) for value in series.margins), left, width - 14)
    y = LogScale.over((float(value) for value in series.errors), bottom, 18)
    parts = [box(left, 18, x(2 * series.largest) - left, bottom - 18, "band")]
    if series.largest >= 10.0**x.low / 2:
        parts.append(text(left + 6, 32, "an error may change these", "small"))
    for tick in x.decades(7):
        at = x(10.0**tick)
        parts += [line(at, 18, at, bottom, "grid"), text(at, bottom + 17, power(tick), "tick", "middle")]
    for tick in y.decades(6):
        at = y(10.0**tick)
        parts += [line(left, at, width - 14, at, "grid"), text(left - 8, at + 4, power(tick), "tick", "end")]
    parts.append(_points(series, x, y))
    for margin, error, explained in series.flips[:MOST_POINTS]:
        kind = "flip explained" if explained else "flip"
        parts.append(f'<path d="M{x(margin):.1f} {y(error) - 6:.1f}l6 6l-6 6l-6 -6z" class="{kind}"/>')
    axis = "margin between the two best FP32 logits"
    parts.append(text((left + width) / 2, bottom + 38, axis, "tick", "middle"))
    parts.append(f'<g transform="rotate(-90 14 {(bottom + 18) / 2:g})">')
    parts.append(text(14, (bottom + 18) / 2, "logit error", "tick", "middle") + "</g>")
    return picture(width, height, f"{series.name}: error against margin", parts)


def _points(series: ErrorSeries, x: LogScale, y: LogScale) -> str:
    """All inputs as one path of round dots: far smaller than a circle each."""
    step = max(1, -(-len(series.errors) // MOST_POINTS))
    dots = "".join(
        f"M{x(float(margin)):.1f} {y(float(error)):.1f}h0"
        for margin, error in zip(series.margins[::step], series.errors[::step], strict=True)
        if math.isfinite(margin) and math.isfinite(error)
    )
    return f'<path d="{dots}" class="dots"/>'


@dataclass(frozen=True)
class IntervalScale:
    """A linear axis around zero that holds several intervals.

    Attributes:
        reach: what lies at either end, in the metric's unit.
    """

    reach: float

    @classmethod
    def over(cls, values: Sequence[float]) -> IntervalScale:
        """The axis that holds all finite `values`."""
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        return cls(1.08 * largest or 1.0)

    def __call__(self, value: float) -> float:
        return 100 + 96 * min(max(value / self.reach, -1), 1)


def interval_chart(low: float, estimate: float, high: float, margin: float, scale: IntervalScale) -> str:
    """A difference with its interval, zero, and the line beyond which the metric has lost too much.

    Args:
        margin: the line, in the metric's unit, with its sign: negative where higher is better.
    """
    parts = [line(4, 12, 196, 12, "grid"), line(100, 2, 100, 22, "axis")]
    parts.append(line(scale(margin), 2, scale(margin), 22, "limit"))
    if all(map(math.isfinite, (low, estimate, high))):
        parts += [line(scale(low), 12, scale(high), 12, "interval")]
        parts += [line(scale(end), 8, scale(end), 16, "interval") for end in (low, high)]
        parts.append(f'<circle cx="{scale(estimate):.1f}" cy="12" r="4" class="estimate"/>')
    shown = [
        f"{value:+.4g}" if math.isfinite(value) else "not finite" for value in (estimate, low, high, margin)
    ]
    words = "difference {}, interval {} to {}, margin {}".format(*shown)
    return picture(200, 24, words, parts)
