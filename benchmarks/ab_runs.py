"""Two or more sides measured alternately, so that whatever the machine does in between meets all of them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Measure = Callable[[int], dict[str, Any]]
"""Given a seed, one measured run."""


@dataclass(frozen=True)
class Run:
    """One measured run of one side; `values` is what its process returned."""

    side: str
    seed: int
    values: Mapping[str, Any]


def alternate(sides: Mapping[str, Measure], seeds: int, show: Callable[[Run], str]) -> list[Run]:
    """Every side once a seed; who begins changes from seed to seed. A line a run goes to standard error."""
    runs: list[Run] = []
    for seed in range(seeds):
        order = list(sides) if seed % 2 == 0 else list(sides)[::-1]
        for side in order:
            runs.append(Run(side, seed, sides[side](seed)))
            say(f"  seed {seed}, {side}: {show(runs[-1])}")
    return runs


def of_side(runs: Sequence[Run], side: str, name: str) -> list[Any]:
    """One measured value of all of a side's runs."""
    return [run.values[name] for run in runs if run.side == side]


def both(runs: Sequence[Run], name: str, summary: Callable[[list[Any]], float]) -> dict[str, float]:
    """`{"ours", "peer"}` of a measured value."""
    return {side: summary(of_side(runs, side, name)) for side in ("ours", "peer")}


def speed(runs: Sequence[Run], side: str, what: str) -> float:
    """The median of `what` a second."""
    return statistics.median(run.values[what] / run.values["seconds"] for run in runs if run.side == side)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
