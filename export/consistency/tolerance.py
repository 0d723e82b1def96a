"""By how much two answers to the same row may differ, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bertmp.export.bundle import PLAN, Bundle
from bertmp.export.precision.plan import PrecisionPlan

LEAST_MAGNITUDE = 1 / 16
"""Smaller answers are differences of larger numbers, whose roundings they keep."""


@dataclass(frozen=True)
class Tolerance:
    """A bound on the difference of two answers to one row.

    Attributes:
        measured: an absolute error that was measured; 0 where none was.
        relative: a share of the answer's largest magnitude, which counts as at least `LEAST_MAGNITUDE`.
        reason: where both are from, in words.
    """

    measured: float
    relative: float
    reason: str

    def bound(self, magnitude: float) -> float:
        """The bound for an answer whose largest magnitude is `magnitude`; finite whatever that is."""
        scale = magnitude if math.isfinite(magnitude) else 1.0
        return max(self.measured, self.relative * max(LEAST_MAGNITUDE, scale))


_SUM_ROUNDINGS = 64 * 8
"""Another batch or length makes a runtime add in another order. Sums of 4,096 terms then differ by about
√4096 = 64 roundings, and 64 such sums one behind the other (12 layers of five products have 60) by √64 = 8
times as much."""

FP32 = Tolerance(
    measured=0.0,
    relative=_SUM_ROUNDINGS * 2.0**-24,
    reason=f"{_SUM_ROUNDINGS} FP32 roundings: sums are added in another order in another batch",
)
"""For what computes in FP32 throughout."""

_STEP = {"fp16": 2.0**-10, "bf16": 2.0**-7}
"""The distance of two neighbouring numbers of a 16-bit type, relative to them."""
_STORED_ROUNDINGS = 4
"""In steps: 16-bit kernels add in FP32 and round what they store, 64 times one behind the other: √64 = 8 half
steps."""


def tolerance_of(plan: PrecisionPlan) -> Tolerance:
    """The tolerance of a graph, or an engine of it, that runs in the plan's low precision.

    It is the plan's measured error, but at least two steps of the low precision, in which answers are stored.
    """
    step = _STEP[plan.target]
    if plan.search is not None and math.isfinite(plan.search.error):
        words = f"the plan's measured error, and at least two steps of {plan.target.upper()}"
        return Tolerance(max(0.0, plan.search.error), max(2 * step, FP32.relative), words)
    return unmeasured_tolerance(plan.target)


def unmeasured_tolerance(precision: str) -> Tolerance:
    """The tolerance of what runs in `fp16` or `bf16` with an error that nobody has measured."""
    words = f"{_STORED_ROUNDINGS} steps of {precision.upper()}: the error was not measured"
    return Tolerance(0.0, _STORED_ROUNDINGS * _STEP[precision], words)


def low_tolerance(bundle: Bundle) -> Tolerance:
    """The tolerance of the bundle's low-precision graph and engine; FP32's where it has no plan.

    Raises:
        InputError: the plan is damaged.
    """
    plan = bundle.folder / PLAN
    return tolerance_of(PrecisionPlan.load(plan)) if plan.is_file() else FP32


def distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Element by element in FP64; infinite where either is not finite."""
    with np.errstate(invalid="ignore"):
        found = np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64))
    return np.where(np.isfinite(found), found, np.inf)
