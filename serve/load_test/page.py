"""A load test as an HTML page: which figures stand where, and in which words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bertmp.report.load_charts import percentile_chart, throughput_chart
from bertmp.report.page import render_page
from bertmp.serve.load_test.figures import BenchResult, LoadPoint

_LEAST_BEYOND = 1
"""A percentile is drawn where at least so many requests were slower."""


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top of the page."""

    figure: str
    caption: str


def render(result: BenchResult, machine: str) -> str:
    """The page as HTML, complete in itself.

    Args:
        machine: what sent the requests, in words.
    """
    drawn = [level for level in result.levels if level.latency_ms]
    return render_page(
        "load_test.html.j2",
        result=result,
        machine=machine,
        tiles=_tiles(drawn),
        charts=list(_charts(drawn)),
    )


def _charts(levels: Sequence[LoadPoint]) -> Iterator[dict[str, Markup]]:
    """Title → chart, for each kind of loop that was measured."""
    closed = [level for level in levels if level.rate is None]
    if closed:
        rates = [level.texts_per_second for level in closed]
        by_throughput = _chart(closed, rates, "texts answered per second")
        yield {
            "Closed loop, by percentile": _percentiles(closed),
            "Closed loop, by throughput": by_throughput,
        }
    opened = sorted((level for level in levels if level.rate), key=lambda level: level.rate or 0)
    if opened:
        rates = [level.rate or 0 for level in opened]
        by_rate = _chart(opened, rates, "texts sent per second")
        yield {"Open loop, by percentile": _percentiles(opened), "Open loop, by rate": by_rate}


def _percentiles(levels: Sequence[LoadPoint]) -> Markup:
    return Markup(percentile_chart({level.short_name: _curve(level) for level in levels}))


def _chart(levels: Sequence[LoadPoint], rates: Sequence[float], axis: str) -> Markup:
    latencies = {f"p{key}": [level.latency_ms[key] for level in levels] for key in ("50", "99")}
    names = [f"{level.concurrency}" if level.rate is None else "" for level in levels]
    return Markup(throughput_chart(names, rates, latencies, axis))


def _curve(level: LoadPoint) -> dict[float, float]:
    """The percentiles from the median on that there are enough requests for."""
    rows = {float(key): value for key, value in level.latency_ms.items()}
    most = 100 * (1 - _LEAST_BEYOND / max(level.requests, 1))
    enough = {percentile: value for percentile, value in rows.items() if 50 <= percentile <= most}
    return enough or {50.0: rows[50.0]}


def _tiles(levels: list[LoadPoint]) -> list[Tile]:
    if not levels:
        return []
    best = max(levels, key=lambda level: level.texts_per_second)
    lightest = min(levels, key=lambda level: level.latency_ms["50"])
    rate = Tile(f"{best.texts_per_second:,.1f}", f"texts per second with {best.name}")
    latencies = [
        Tile(f"{level.latency_ms[key]:,.1f} ms", f"{words} with {level.name}")
        for level in ([best] if best is lightest else [best, lightest])
        for key, words in (("50", "median"), ("99", "99th percentile"))
    ]
    return [rate, *latencies]
