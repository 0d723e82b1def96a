"""HTML pages and their charts, without scripts or fonts from elsewhere; every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_page(template: str, **values: Any) -> str:
    """Renders one of this package's templates.

    Args:
        template: its file name, such as `parity.html.j2`.
        values: what the template shows; markup must be `markupsafe.Markup`, all else is escaped.

    Returns:
        The page as HTML.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(scientific=scientific, megabytes=megabytes, words=words, label=label)
    return environment.get_template(template).render(**values)


def megabytes(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def label(key: str) -> str:
    """A JSON key as words."""
    return key.replace("_", " ")


def words(value: Any) -> str:
    """A plain JSON value as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return scientific(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{label(key)} {words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(words(item) for item in value) or "none"
    return str(value)


_MARKS = {"passed": "✓", "verified": "✓", "failed": "✗", "reference": "●", "not run": "…"}
_MOST_POINTS = 2000


@dataclass(frozen=True)
class ChainLink:
    """One box of the chain.

    Attributes:
        name, subtitle: what it is.
        figure, caption: its most important number, in words.
        verdict: the gates' verdict; empty for the data.
        verb: what leads to it from the box before.
    """

    name: str
    subtitle: str
    figure: str
    caption: str
    verdict: str = ""
    verb: str = ""


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


def chain_chart(links: Sequence[ChainLink]) -> str:
    """Data → checkpoint → graphs → engine → Triton, each with its verdict and its error."""
    wide, high, gap = 148.0, 104.0, 52.0
    parts = []
    for place, link in enumerate(links):
        x = 1 + place * (wide + gap)
        if place:
            parts.append(_arrow(x - gap, x, high / 2 + 16, link.verb))
        kind = link.verdict.replace(" ", "-") or "plain"
        parts += [
            box(x, 16, wide, high, f"node {kind}", 10),
            text(x + 13, 42, link.name, "name"),
            text(x + wide - 14, 42, _MARKS.get(link.verdict, ""), f"mark {kind}", "end"),
            text(x + 13, 62, shorten(link.subtitle, 20), "small"),
            text(x + 13, 90, link.figure, "figure"),
            text(x + 13, 108, shorten(link.caption, 22), "small"),
        ]
    width = len(links) * (wide + gap) - gap
    return picture(width + 2, high + 34, "The chain and the verdict on each stage", parts)


def _arrow(start: float, end: float, y: float, verb: str) -> str:
    head = f'<path d="M{end - 9:.1f} {y - 4.5:.1f}l7 4.5l-7 4.5" class="head"/>'
    label = text((start + end) / 2, y - 9, verb, "small", "middle")
    return line(start + 4, y, end - 3, y, "arrow") + head + label


def histogram_chart(series: Sequence[ErrorSeries]) -> str:
    """A histogram per stage over one logarithmic axis of errors, with the gate's limit if any."""
    left, right, row = 118.0, 940.0, 90.0
    values = [value for one in series for value in (*_extent(one.errors), one.limit) if value is not None]
    scale = LogScale.over(values, left, right)
    bottom = 14 + row * len(series)
    parts = [line(scale(10.0**tick), 8, scale(10.0**tick), bottom, "grid") for tick in scale.decades()]
    for place, one in enumerate(series):
        parts.append(_histogram(one, scale, 8 + row * (place + 1) - 12, row - 38))
    parts += [text(scale(10.0**tick), bottom + 16, power(tick), "tick", "middle") for tick in scale.decades()]
    parts.append(text((left + right) / 2, bottom + 36, "largest logit error of an input", "tick", "middle"))
    return picture(960, bottom + 44, "Distribution of the logit errors, stage by stage", parts)


def _extent(errors: np.ndarray) -> list[float]:
    positive = errors[(errors > 0) & np.isfinite(errors)]
    return [float(positive.min()), float(positive.max())] if len(positive) else []


def _histogram(series: ErrorSeries, scale: LogScale, base: float, height: float) -> str:
    places = np.array([scale(float(value)) for value in series.errors if math.isfinite(value)])
    edges = np.linspace(scale.start, scale.end, 12 * (scale.high - scale.low) + 1)
    counts, _ = np.histogram(places, edges)
    tallest = max(int(counts.max()), 1)
    parts = [text(0, base - 2, series.name, "name"), line(scale.start, base, scale.end, base, "axis")]
    parts += [
        box(x + 0.5, base - height * count / tallest, step - 1, height * count / tallest, "bar", 1)
        for x, step, count in zip(edges[:-1], np.diff(edges), counts, strict=True)
        if count
    ]
    if math.isfinite(series.largest):
        x = scale(series.largest)
        parts += [line(x, base - height, x, base, "worst")]
        parts += [text(x + 5, base - height + 9, f"max {scientific(series.largest)}", "small")]
    if series.limit is not None:
        x = scale(series.limit)
        parts += [line(x, base - height - 16, x, base, "limit")]
        parts += [text(x - 5, base - height - 8, f"limit {scientific(series.limit)}", "small limit", "end")]
    return "".join(parts)


def margin_chart(series: ErrorSeries) -> str:
    """Each input by the reference's margin and the stage's error; what lies in the band might flip."""
    width, height, left, bottom = 400.0, 290.0, 58.0, 240.0
    x = LogScale.over((float(value) for value in series.margins), left, width - 12)
    y = LogScale.over((float(value) for value in series.errors), bottom, 18)
    parts = [box(left, 18, x(2 * series.largest) - left, bottom - 18, "band")]
    if series.largest >= 10.0**x.low / 2:
        parts.append(text(left + 6, 32, "an error may change these", "small"))
    for tick in x.decades(7):
        at = x(10.0**tick)
        parts += [line(at, 18, at, bottom, "grid"), text(at, bottom + 17, power(tick), "tick", "middle")]
    for tick in y.decades(6):
        at = y(10.0**tick)
        parts += [line(left, at, width - 12, at, "grid"), text(left - 8, at + 4, power(tick), "tick", "end")]
    parts.append(_points(series, x, y))
    for margin, error, explained in series.flips:
        kind = "flip explained" if explained else "flip"
        parts.append(f'<path d="M{x(margin):.1f} {y(error) - 6:.1f}l6 6l-6 6l-6 -6z" class="{kind}"/>')
    axis = "margin between the two best FP32 logits"
    parts.append(text((left + width) / 2, bottom + 38, axis, "tick", "middle"))
    parts.append(f'<g transform="rotate(-90 14 {(bottom + 18) / 2:g})">')
    parts.append(text(14, (bottom + 18) / 2, "logit error", "tick", "middle") + "</g>")
    return picture(width, height, f"{series.name}: error against margin", parts)


def _points(series: ErrorSeries, x: LogScale, y: LogScale) -> str:
    """All inputs as one path of round dots: far smaller than a circle each."""
    step = max(1, -(-len(series.errors) // _MOST_POINTS))
    dots = "".join(
        f"M{x(float(margin)):.1f} {y(float(error)):.1f}h0"
        for margin, error in zip(series.margins[::step], series.errors[::step], strict=True)
        if math.isfinite(margin) and math.isfinite(error)
    )
    return f'<path d="{dots}" class="dots"/>'


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class LogScale:
    """Positive numbers on a logarithmic axis; what lies outside is drawn at the end.

    Attributes:
        low, high: the first and the last decade, as exponents of ten.
        start, end: where they lie, in the picture's units.
    """

    low: int
    high: int
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, least: int = 2) -> LogScale:
        """The decades that hold all positive finite `values`, at least `least` of them."""
        usable = [value for value in values if value > 0 and math.isfinite(value)]
        low = math.floor(math.log10(min(usable))) if usable else -1
        high = math.ceil(math.log10(max(usable))) if usable else 0
        return cls(min(low, high - least), high, start, end)

    def __call__(self, value: float) -> float:
        exponent = math.log10(value) if value > 0 else self.low
        share = (min(max(exponent, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def decades(self, most: int = 9) -> list[int]:
        """The exponents to label, not more than `most`."""
        step = -(-(self.high - self.low + 1) // most)
        return list(range(self.low, self.high + 1, step))


def scientific(value: float) -> str:
    """`0.00267` → `2.67 × 10⁻³`; numbers near one stay as they are."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "not finite"
    if 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g} × {power(int(exponent))}"  # noqa: RUF001  (a multiplication sign is meant)


def power(exponent: int) -> str:
    """`10⁻³` for -3."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 0) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" '
        f'rx="{radius:g}" class="{kind}"/>'
    )


def picture(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """An inline SVG; screen readers read `title`."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'style="max-width:{1.15 * width:g}px">{"".join(parts)}</svg>'
    )


def shorten(words: str, most: int) -> str:
    """At most `most` characters, the end given up."""
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
