"""Whether a metric is as good after a change as it was before, within a margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bertmp.core.io import JsonSerializable
from bertmp.metrics.binomial import zero_bound
from bertmp.metrics.intervals import Interval

Verdict = Literal["better", "equal", "worse", "inconclusive"]

MARGIN = 0.001
"""The share of the reference's value that may be lost: MLPerf Inference's stricter target, for BERT too, is
99.9 % of the FP32 model's accuracy."""

_MOST_ROWS = 1e9

FEWEST_ROWS = 30
"""A bootstrap of fewer rows draws the same few again and again: its interval is too narrow to go by."""


@dataclass(frozen=True)
class NonInferiority(JsonSerializable):
    """A verdict and what it rests on.

    Attributes:
        verdict: `equal`: the interval of the difference goes no further to the worse than the margin, and is
            not wholly above it; `better`: it is wholly on the better side and reaches beyond the margin;
            `worse`: it is wholly beyond the margin; `inconclusive`: it reaches over the margin's edge.
        reference: the metric's value before.
        margin: how much worse it may be, in the metric's unit.
        difference: after minus before.
        rows_needed: for `inconclusive`, about how many rows would settle it if they go on as these do; None
            otherwise, and where more than a billion would.
    """

    verdict: Verdict
    reference: float
    margin: float
    difference: Interval
    rows_needed: int | None = None


def non_inferiority(
    reference: float, difference: Interval, margin: float = MARGIN, *, higher_is_better: bool = True
) -> NonInferiority:
    """The verdict on a metric.

    Args:
        reference: the metric's value before.
        difference: its change and the interval; see `bertmp.metrics.intervals`.
        margin: the share of the reference's value that may be lost.
        higher_is_better: False for errors, losses and perplexity.
    """
    allowed = margin * abs(reference)
    ends = (difference.low, difference.high)
    low, high = ends if higher_is_better else (-ends[1], -ends[0])
    verdict = _verdict(low, high, allowed)
    if not difference.changed and low == high:  # a bootstrap that saw no change knows nothing
        verdict = "inconclusive"
    few = difference.method == "bootstrap" and difference.rows < FEWEST_ROWS
    if few:
        verdict = "inconclusive"
    needed = None
    if verdict == "inconclusive":
        estimate = difference.estimate if higher_is_better else -difference.estimate
        needed = _rows_needed(difference, (low, estimate, high), allowed)
        needed = max(FEWEST_ROWS, needed or 0) if few else needed
    return NonInferiority(verdict, reference, allowed, difference, needed)


def _verdict(low: float, high: float, margin: float) -> Verdict:
    """The verdict on an interval of a gain; NaN anywhere is inconclusive."""
    if not low <= high or low < -margin <= high:
        return "inconclusive"
    if high < -margin:
        return "worse"
    return "better" if low > 0.0 and high > margin else "equal"


def _rows_needed(difference: Interval, gain: tuple[float, float, float], margin: float) -> int | None:
    """How many rows settle it, if the estimate stays and its interval shrinks with the root of their number.

    Args:
        difference: the interval.
        gain: its low end, estimate and high end, where higher is better.
        margin: in the metric's unit.
    """
    low, estimate, high = gain
    if not difference.changed:
        return _unchanged_rows(difference, high, margin)
    distance = estimate + margin
    wide = estimate - low if distance > 0.0 else high - estimate
    rows = difference.rows * (wide / distance) ** 2 if distance else math.inf
    return max(difference.rows + 1, math.ceil(rows)) if rows <= _MOST_ROWS else None


def _unchanged_rows(difference: Interval, bound: float, margin: float) -> int | None:
    """How many rows without a change bring the bound on unseen changes within the margin."""
    if not bound or not margin:
        return None
    share = margin * zero_bound(difference.rows, difference.confidence) / bound
    return math.ceil(math.log1p(-difference.confidence) / math.log1p(-share))
