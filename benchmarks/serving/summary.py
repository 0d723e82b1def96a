"""What the runs of the serving benchmark add up to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.ab_runs import Run, of_side
from benchmarks.serving.load import Measured

CLIENTS = (1, 4, 16)
OURS = "bertmp"
GOALS = {
    "ratio_best_peer": 1.1,
    "ratio_best_peer_bf16": 1.7,
    "p99_to_best_peer": 0.5,
    "one_client_ms_above": 1.0,
}


def show(run: Run) -> str:
    """One run in one line."""
    if run.side == "peak":
        return f"{run.values['fp32'] / 1e9:.0f} GFLOP/s in FP32, {run.values['bf16'] / 1e9:.0f} in BF16"
    if run.side == "in process":
        return f"{statistics.median(run.values['milliseconds']):.1f} ms a text (median)"
    parts = []
    for clients, measured in zip(CLIENTS, run.values["loads"], strict=True):
        point = measured.point
        shown = (
            measured.failure
            if point is None
            else f"{point.texts_per_second:.1f}/s, p99 {point.p99_ms:.0f} ms"
        )
        parts.append(f"{clients}: {shown}")
    return "; ".join(parts)


def results(runs: Sequence[Run], flops_per_text: float) -> dict[str, Any]:
    """Medians of the rounds, and what they say about each other."""
    names = list(dict.fromkeys(run.side for run in runs if "loads" in run.values))
    rows = [_row(runs, name, place) for name in names for place in range(len(CLIENTS))]
    most = {row["system"]: row for row in rows if row["clients"] == CLIENTS[-1]}
    ours = most[OURS]
    peers = [row for name, row in most.items() if not name.startswith(OURS) and row["texts_per_second"]]
    best = max(peers, key=lambda row: row["texts_per_second"], default=None)
    peaks = {kind: max(of_side(runs, "peak", kind)) for kind in ("fp32", "bf16")}
    times = np.median(np.array(of_side(runs, "in process", "milliseconds")), axis=0)
    alone = {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}
    one = next(row for row in rows if row["system"] == OURS and row["clients"] == 1)
    found: dict[str, Any] = {
        "rows": rows,
        "best_peer": best["system"] if best else None,
        "ratio_best_peer": _ratio(ours, best, "texts_per_second"),
        "p99_to_best_peer": _ratio(ours, best, "p99_ms"),
        "ratio_fp32_bound": _share(ours["texts_per_second"], peaks["fp32"] / flops_per_text),
        "fp32_bound_texts_per_second": peaks["fp32"] / flops_per_text,
        "gemm_flops_per_second": peaks,
        "in_process": alone,
        "one_client_ms_above": one["p50_ms"] - alone["p50_ms"] if one["p50_ms"] else None,
        "failures": sum(row["failures"] for row in rows),
        "wrong_answers": sum(row["wrong_answers"] for row in rows if row["system"] != f"{OURS} bf16"),
    }
    if f"{OURS} bf16" in most:
        bf16 = most[f"{OURS} bf16"]
        found["ratio_best_peer_bf16"] = _ratio(bf16, best, "texts_per_second")
        found["ratio_bf16_bound"] = _share(bf16["texts_per_second"], peaks["bf16"] / flops_per_text)
    return {**found, "goals": {name: goal for name, goal in GOALS.items() if name in found}}


def _row(runs: Sequence[Run], name: str, place: int) -> dict[str, Any]:
    """A system under one load: medians of its rounds, sums of what went wrong."""
    seen: list[Measured] = [loads[place] for loads in of_side(runs, name, "loads")]
    points = [measured.point for measured in seen if measured.point is not None]

    def middle(figure: str) -> float | None:
        return statistics.median(getattr(point, figure) for point in points) if points else None

    return {
        "system": name,
        "clients": CLIENTS[place],
        **{figure: middle(figure) for figure in ("texts_per_second", "p50_ms", "p90_ms", "p99_ms")},
        "failures": sum(measured.failures for measured in seen),
        "failure": next((measured.failure for measured in seen if measured.failure), None),
        "answers": sum(measured.answers for measured in seen),
        "wrong_answers": sum(measured.wrong for measured in seen),
        "rounds": [{"texts_per_second": one.texts_per_second, "p99_ms": one.p99_ms} for one in points],
    }


def most_texts_per_second(found: dict[str, Any]) -> float:
    """What ours answers under the most clients."""
    return next(
        row["texts_per_second"] or 1.0
        for row in found["rows"]
        if (row["system"], row["clients"]) == (OURS, CLIENTS[-1])
    )


def open_loop(measured: Measured, found: dict[str, Any]) -> dict[str, Any]:
    """Ours by the clock, against the time of the slowest text in a hundred in process."""
    point = measured.point
    if point is None:
        return {"failure": measured.failure}
    alone = found["in_process"]["p99_ms"]
    return {
        "rate": point.rate,
        "texts_per_second": point.texts_per_second,
        "p50_ms": point.p50_ms,
        "p99_ms": point.p99_ms,
        "failures": point.failures,
        "p99_to_in_process": point.p99_ms / alone if point.p99_ms else None,
        "goal": 2.0,
    }


def _ratio(ours: dict[str, Any], peer: dict[str, Any] | None, figure: str) -> float | None:
    return _share(ours[figure], peer[figure]) if peer else None


def _share(value: float | None, of: float | None) -> float | None:
    return value / of if value and of else None


def table(found: dict[str, Any]) -> Any:
    """The figures as a Rich table."""
    from rich.table import Table

    shown = Table(title="Text in, label out, over HTTP")
    shown.add_column("system", no_wrap=True)
    for name in ("clients", "texts/s", "p50 ms", "p99 ms", "failed", "wrong"):
        shown.add_column(name, justify="right")
    for row in found["rows"]:
        figures = (_shown(row[name]) for name in ("texts_per_second", "p50_ms", "p99_ms"))
        shown.add_row(
            row["system"], str(row["clients"]), *figures, str(row["failures"]), str(row["wrong_answers"])
        )
    names = (
        "ratio_best_peer",
        "ratio_best_peer_bf16",
        "p99_to_best_peer",
        "ratio_fp32_bound",
        "one_client_ms_above",
    )
    shown.caption = "; ".join(
        f"{name.replace('_', ' ')} {found[name]:.2f}" for name in names if found.get(name) is not None
    )
    return shown


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
