"""Parts of inline SVG pictures: shapes, texts, a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


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
