"""Verdicts on a metric."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.metrics.intervals import Interval, accuracy_difference
from bertmp.metrics.non_inferiority import non_inferiority


def interval(low: float, high: float, rows: int = 1000, changed: int = 20) -> Interval:
    return Interval((low + high) / 2, low, high, 0.95, rows, changed, "bootstrap")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0002, 0.02, "better"),
        (0.0002, 0.0008, "equal"),  # surely better, but by less than anyone cares about
        (-0.0008, -0.0002, "equal"),
        (-0.0008, 0.02, "equal"),
        (-0.02, -0.0012, "worse"),
        (-0.02, -0.0002, "inconclusive"),
        (-0.02, 0.02, "inconclusive"),
        (-0.02, math.nan, "inconclusive"),
        (math.nan, -0.02, "inconclusive"),
    ],
)
def test_verdict_follows_from_interval_and_margin(low: float, high: float, verdict: str) -> None:
    assert non_inferiority(1.0, interval(low, high)).verdict == verdict
    # Of an error, the same change the other way round.
    assert non_inferiority(1.0, interval(-high, -low), higher_is_better=False).verdict == verdict


def test_margin_is_a_share_of_the_reference() -> None:
    found = non_inferiority(0.5, interval(-0.0007, 0.0))
    assert (found.margin, found.verdict) == (0.0005, "inconclusive")
    assert non_inferiority(0.5, interval(-0.0007, 0.0), margin=0.002).verdict == "equal"
    assert non_inferiority(-0.5, interval(-0.0004, 0.0)).verdict == "equal"


def test_no_flip_among_981_is_inconclusive_and_3000_would_settle_it() -> None:
    right = np.ones(981, bool)
    found = non_inferiority(1.0, accuracy_difference(right, right))
    assert (found.verdict, found.rows_needed) == ("inconclusive", 2995)
    for rows, verdict in ((2994, "inconclusive"), (2995, "equal")):
        right = np.ones(rows, bool)
        assert non_inferiority(1.0, accuracy_difference(right, right)).verdict == verdict


def test_no_change_that_cannot_be_bounded_is_inconclusive() -> None:
    found = non_inferiority(3.0, interval(0.0, 0.0, changed=0), higher_is_better=False)
    assert (found.verdict, found.rows_needed) == ("inconclusive", None)
    # The same ends where rows did change are a finding.
    assert non_inferiority(3.0, interval(0.0, 0.0), higher_is_better=False).verdict == "equal"


def test_rows_needed_without_end_is_none() -> None:
    assert non_inferiority(1.0, interval(-0.001 - 0.01, -0.001 + 0.01)).rows_needed is None
    assert non_inferiority(0.0, interval(-0.1, 0.1)).rows_needed is None


@given(st.floats(-0.05, 0.05), st.floats(1e-4, 0.2), st.booleans())
def test_rows_needed_settle_it_if_the_interval_shrinks_with_their_root(
    estimate: float, half: float, higher: bool
) -> None:
    found = non_inferiority(1.0, interval(estimate - half, estimate + half), higher_is_better=higher)
    if found.rows_needed is None:
        settled = found.verdict != "inconclusive"
        assert settled or abs((estimate if higher else -estimate) + 0.001) < half / 900
        return
    assert found.verdict == "inconclusive"
    shrunk = half * math.sqrt(1000 / found.rows_needed) * (1 - 1e-9)
    later = replace(interval(estimate - shrunk, estimate + shrunk), rows=found.rows_needed)
    assert non_inferiority(1.0, later, higher_is_better=higher).verdict != "inconclusive"


def test_verdict_is_json() -> None:
    found = non_inferiority(1.0, interval(-0.25, 0.25))
    assert json.loads(json.dumps(found.to_json())) == {
        "verdict": "inconclusive", "reference": 1.0, "margin": 0.001, "rows_needed": 62_500_000,
        "difference": vars(found.difference),
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "verdict"), [(3, "inconclusive"), (29, "inconclusive"), (30, "equal")])
def test_a_bootstrap_of_a_handful_of_rows_is_inconclusive(rows: int, verdict: str) -> None:
    found = non_inferiority(1.0, interval(-0.0001, 0.0001, rows=rows, changed=rows))
    assert found.verdict == verdict
    assert found.rows_needed == (30 if verdict == "inconclusive" else None)
