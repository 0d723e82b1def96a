"""The charts of a load test as inline SVG: latency by percentile, and throughput with latency by load."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bertmp.report.svg import line, picture, text

_WIDTH, _HEIGHT = 400.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 392.0, 22.0, 252.0
_LABEL, _NAMES = 14.0, 80.0
"""The height of a label, and the width for the names of lines."""
COLOURS = 6
"""The styles `line0` to `line5` of the page; further lines begin again."""
_NINES = ((50, "50 %"), (90, "90 %"), (99, "99 %"), (99.9, "99.9 %"), (99.99, "99.99 %"))


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis that begins and ends at 1, 2 or 5 times a power of ten.

    Attributes:
        low, high: its ends, in the data's unit.
        start, end: where they lie, in the picture's units.
    """

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> Axis:
        """The axis that holds all positive `values`."""
        usable = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
        low = max((tick for tick in _ticks(min(usable), max(usable)) if tick <= min(usable)), default=1.0)
        high = min((tick for tick in _ticks(min(usable), max(usable)) if tick >= max(usable)), default=10.0)
        return cls(low, high if high > low else 2 * low, start, end)

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.start + min(share, 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """The values to label."""
        ticks = [tick for tick in _ticks(self.low, self.high) if self.low <= tick <= self.high]
        return ticks if len(ticks) <= 9 else [tick for tick in ticks if math.log10(tick).is_integer()]


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten around a range."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    return [digit * 10.0**exponent for exponent in range(first, last + 1) for digit in (1, 2, 5)]


def percentile_chart(curves: Mapping[str, Mapping[float, float]]) -> str:
    """Latency by percentile, a line for each load; each step to the right is ten times as rare.

    Args:
        curves: load → percentile, 50 to below 100 → milliseconds.
    """
    rarest = max(90.0, *(percentile for curve in curves.values() for percentile in curve))
    first, last = (-math.log10(1 - percentile / 100) for percentile in (50, rarest))
    y = Axis.over((value for curve in curves.values() for value in curve.values()), _BOTTOM, _TOP)

    def x(percentile: float) -> float:
        share = (-math.log10(1 - percentile / 100) - first) / (last - first)
        return _LEFT + share * (_RIGHT - _NAMES - _LEFT)

    parts = _latency_grid(y)
    for percentile, words in _NINES:
        if percentile <= rarest:
            at = x(percentile)
            parts += [line(at, _TOP, at, _BOTTOM, "grid"), text(at, _BOTTOM + 17, words, "tick", "middle")]
    for number, curve in enumerate(curves.values()):
        parts += _polyline([(x(percentile), y(value)) for percentile, value in sorted(curve.items())], number)
    heights = _apart([y(curve[max(curve)]) for curve in curves.values()])
    for number, (name, height) in enumerate(zip(curves, heights, strict=True)):
        parts.append(text(x(rarest) + 7, height + 4, name, f"small mark{number % COLOURS}"))
    parts.append(_caption("share of the requests that were at most as slow"))
    return picture(_WIDTH, _HEIGHT, "latency by percentile", parts)


def throughput_chart(
    names: Sequence[str], rates: Sequence[float], latencies: Mapping[str, Sequence[float]], axis: str
) -> str:
    """Latency by rate, a point for each load, a line for each percentile.

    Args:
        names: of the loads, in the order of their lines.
        rates: of each load, per second.
        latencies: percentile's name → of each load, milliseconds.
        axis: what the rates are, in words.
    """
    y = Axis.over((value for row in latencies.values() for value in row), _BOTTOM, _TOP)
    most = 1.08 * max(rates, default=1.0) or 1.0

    def x(rate: float) -> float:
        return _LEFT + rate / most * (_RIGHT - _LEFT)

    parts = _latency_grid(y)
    for tick in _even_ticks(most):
        parts += [line(x(tick), _TOP, x(tick), _BOTTOM, "grid")]
        parts += [text(x(tick), _BOTTOM + 17, f"{tick:g}", "tick", "middle")]
    for number, (name, row) in enumerate(latencies.items()):
        points = [(x(rate), y(value)) for rate, value in zip(rates, row, strict=True)]
        parts += _polyline(points, number)
        kind = f"mark{number % COLOURS}"
        parts += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3.5" class="{kind}"/>' for left, top in points]
        left, top = points[0]
        parts.append(text(left - 8, top + 4, name, f"small {kind}", "end"))
    for place, (name, rate) in enumerate(zip(names, rates, strict=True)):
        lowest = max(y(row[place]) for row in latencies.values())
        anchor = "middle" if x(rate) < _RIGHT - 40 else "end"
        parts.append(text(x(rate), min(lowest + 17, _BOTTOM - 4), name, "tick", anchor))
    parts.append(_caption(axis))
    return picture(_WIDTH, _HEIGHT, f"latency by {axis}", parts)


def _caption(words: str) -> str:
    return text((_LEFT + _RIGHT) / 2, _BOTTOM + 38, words, "tick", "middle")


def _latency_grid(y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts += [line(_LEFT, at, _RIGHT, at, "grid"), text(_LEFT - 7, at + 4, f"{tick:g}", "tick", "end")]
    return [*parts, text(4, 12, "latency, ms", "tick")]


def _even_ticks(most: float) -> list[float]:
    step = min(step for step in _ticks(most / 100, most) if most / step <= 6)
    return [step * number for number in range(int(most / step) + 1)]


def _polyline(points: Sequence[tuple[float, float]], number: int) -> list[str]:
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return [f'<polyline points="{at}" class="line line{number % COLOURS}"/>']


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights for labels: near the given ones, and far enough from each other to be read."""
    placed: dict[int, float] = {}
    lowest = -math.inf
    for number in sorted(range(len(heights)), key=lambda number: heights[number]):
        lowest = placed[number] = max(heights[number], lowest + _LABEL)
    beyond = max(0.0, lowest - _BOTTOM)
    return [placed[number] - beyond for number in range(len(heights))]
