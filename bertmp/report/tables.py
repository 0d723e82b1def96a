"""Parts of a report that are drawn as HTML: the chain of stages, and tables whose cells are coloured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOT = 0.55
"""Above this share of the colour, a cell's words are written in the paper's colour."""


@dataclass(frozen=True)
class ChainLink:
    """One box of the chain.

    Attributes:
        name, subtitle: what it is.
        figure, caption: its most important number, in words.
        verdict: the gates' verdict; empty for the data.
        verb: what leads to it from the box before.
        aside: whether it stands beside the chain: nothing is made from it.
    """

    name: str
    subtitle: str
    figure: str
    caption: str
    verdict: str = ""
    verb: str = ""
    aside: bool = False

    @property
    def mark(self) -> str:
        """The verdict as a sign."""
        return {"passed": "✓", "verified": "✓", "failed": "✗", "reference": "●", "not run": "…"}.get(
            self.verdict, ""
        )


@dataclass(frozen=True)
class HeatCell:
    """A cell of a coloured table.

    Attributes:
        words: what stands in it.
        heat: how much of the colour it has, 0 to 1.
        marked: whether it is set off from the others.
    """

    words: str
    heat: float
    marked: bool = False

    @property
    def is_hot(self) -> bool:
        return self.heat > HOT


def error_cells(errors: Sequence[float], roundoff: float) -> list[HeatCell]:
    """Relative errors in percent, coloured by their logarithm.

    The colour starts at half a rounding of the 16-bit type and is full at 30 %, so that it means the same in
    every report.

    Args:
        errors: relative errors, infinite where a number is not finite.
        roundoff: of the 16-bit type.
    """
    low, high = math.log10(roundoff / 2), math.log10(0.3)
    cells = []
    for error in errors:
        place = math.log10(error) if 0 < error < math.inf else math.inf if error else -math.inf
        cells.append(HeatCell(percent(error), min(max((place - low) / (high - low), 0.0), 1.0)))
    return cells


def percent(share: float) -> str:
    """A share in percent, with two digits; `∞` where it is not finite."""
    if not math.isfinite(share):
        return "∞"
    value = 100 * share
    if value == 0:
        return "0"
    if value < 0.001:
        return "<0.001"
    return f"{value:.0f}" if value >= 10 else f"{value:.{1 - math.floor(math.log10(value))}f}"


def count_cells(counts: np.ndarray, before: np.ndarray | None = None) -> list[list[HeatCell]]:
    """A confusion matrix, coloured by the share of its row; what differs from `before` is marked.

    Args:
        counts, before: INT64 `[classes, classes]`.
    """
    sums = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Mistakes are rare: by the root of the share they can be seen beside the right ones.
    heat = np.sqrt(counts / sums)
    changed = counts != counts if before is None else counts != before
    return [
        [
            HeatCell(f"{count:,}" if count else "", float(share), bool(mark))
            for count, share, mark in zip(*row, strict=True)
        ]
        for row in zip(counts.tolist(), heat, changed, strict=True)
    ]
