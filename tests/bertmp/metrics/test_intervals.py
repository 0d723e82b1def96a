"""Intervals: published values, exact coverage by enumeration, coverage by simulation."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertmp.metrics.binomial import binomial_cdf, clopper_pearson, zero_bound
from bertmp.metrics.intervals import (
    Discordant,
    accuracy_difference,
    bootstrap_difference,
    difference_bounds,
    mcnemar_p,
)
from bertmp.metrics.task_metrics import macro_f1, pearson


def rights(lost: int, gained: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `rows` are right before and after; the unchanged ones are right."""
    before, after = np.ones((2, rows), bool)
    after[:lost] = False
    before[lost : lost + gained] = False
    return before, after


@given(st.integers(1, 60), st.data())
def test_binomial_cdf_is_its_sum(n: int, data: st.DataObject) -> None:
    k, p = data.draw(st.integers(0, n)), data.draw(st.integers(1, 199)) * Fraction(1, 200)
    expected = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_cdf(k, n, float(p)) == pytest.approx(float(expected), rel=1e-11, abs=1e-14)


def test_binomial_cdf_of_many_trials_is_exact_to_eight_digits() -> None:
    n = 20_000
    ways = total = 1
    for i in range(9_900):
        ways = ways * (n - i) // (i + 1)
        total += ways
    assert binomial_cdf(9_900, n, 0.5) == pytest.approx(float(Fraction(total, 2**n)), rel=1e-9)
    assert binomial_cdf(500_000, 1_000_001, 0.5) == pytest.approx(0.5, rel=1e-8)
    assert [binomial_cdf(-1, 5, 0.3), binomial_cdf(5, 5, 0.3), binomial_cdf(2, 5, 0.0)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(1, 10, 0.0025, 0.4450), (5, 10, 0.1871, 0.8129), (8, 10, 0.4439, 0.9748), (0, 10, 0.0, 0.3085)],
)
def test_clopper_pearson_is_the_table(k: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(k, n, 0.95) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 100_000), st.floats(0.5, 0.999))
@settings(deadline=None, max_examples=30)
def test_clopper_pearson_at_its_ends_is_the_closed_form(n: int, confidence: float) -> None:
    expected = 1 - ((1 - confidence) / 2) ** (1 / n)
    assert clopper_pearson(0, n, confidence) == pytest.approx((0.0, expected), rel=1e-8)
    assert clopper_pearson(n, n, confidence) == pytest.approx((1 - expected, 1.0), rel=1e-8)


def test_no_flip_among_981_bounds_the_loss_at_three_tenths_of_a_percent() -> None:
    found = accuracy_difference(*rights(0, 0, 981))
    assert (found.estimate, found.changed, found.rows) == (0.0, 0, 981)
    assert (found.low, found.high) == pytest.approx((-0.003049, 0.003049), abs=1e-6)
    assert zero_bound(2995, 0.95) < 0.001 < zero_bound(2994, 0.95)  # the rule of three


def coverage(rows: int, confidence: float, lost: np.ndarray, gained: np.ndarray, most: int) -> np.ndarray:
    """How often the interval holds the difference, for probabilities of a loss and of a gain, `[cases]`.

    Cases with more than `most` losses or gains are taken not to hold it.
    """
    held = np.zeros(len(lost))
    for b in range(min(rows, most) + 1):
        for c in range(min(rows - b, most) + 1):
            low, high = difference_bounds(Discordant(b, c, rows), confidence)
            ways = float(math.comb(rows, b) * math.comb(rows - b, c))
            chance = ways * lost**b * gained**c * (1 - lost - gained) ** (rows - b - c)
            held += chance * ((low <= gained - lost) & (gained - lost <= high))
    return held


@pytest.mark.parametrize(("rows", "confidence"), [(1, 0.95), (3, 0.95), (12, 0.95), (30, 0.9), (40, 0.95)])
def test_exact_interval_never_covers_less_than_it_says(rows: int, confidence: float) -> None:
    # Rare changes in fine steps, where the case without any decides, and coarse steps elsewhere. The
    # coverage jumps where a difference leaves that case's interval: just outside is the worst place.
    edge = zero_bound(rows, confidence) * 1.0001
    shares = np.concatenate([np.linspace(0, 1, 26), np.linspace(0, min(1, 8 / rows), 25), [min(edge, 1.0)]])
    lost, gained = (side.ravel() for side in np.meshgrid(shares, shares))
    just_outside = np.stack([lost, lost - edge])
    lost, gained = np.concatenate([[lost, gained], just_outside, just_outside[::-1]], axis=1)
    possible = (lost >= 0) & (gained >= 0) & (lost + gained <= 1)
    held = coverage(rows, confidence, lost[possible], gained[possible], rows)
    assert held.min() >= confidence - 1e-12
    # It is not wide without need either: just outside the first case's interval it is sharp.
    assert held.min() <= confidence + 0.01


@pytest.mark.slow
def test_exact_interval_keeps_its_coverage_where_few_of_981_rows_change() -> None:
    rows, edge = 981, zero_bound(981, 0.95)
    gains = np.linspace(0, 6 / rows, 25)
    cases = [(gain + edge * factor, gain) for gain in gains for factor in (1.0001, 1.2, 1.5, 2.0, 3.0)]
    cases += [(loss, gain) for loss in np.linspace(0, 8 / rows, 17) for gain in np.linspace(0, 8 / rows, 17)]
    held = coverage(rows, 0.95, *np.array(cases).T, most=40)
    assert 0.95 <= held.min() <= 0.951


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 500))
@settings(deadline=None)
def test_exact_interval_holds_its_estimate_and_mirrors(lost: int, gained: int, others: int) -> None:
    rows = lost + gained + others
    found, mirrored = (
        accuracy_difference(*rights(*sides, rows)) for sides in [(lost, gained), (gained, lost)]
    )
    assert -1.0 <= found.low <= found.estimate <= found.high <= 1.0
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    wider = accuracy_difference(*rights(lost, gained, rows), confidence=0.99)
    assert wider.low <= found.low <= found.high <= wider.high


def test_exact_interval_of_many_rows_is_near_the_normal_one() -> None:
    lost, gained, rows = 5_000, 5_400, 100_000
    found = accuracy_difference(*rights(lost, gained, rows))
    spread = 1.96 * math.sqrt(lost + gained - (gained - lost) ** 2 / rows) / rows
    assert found.estimate == pytest.approx(0.004)
    assert spread < found.high - found.estimate < 1.25 * spread


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 3, 1.0), (0, 6, 1 / 32), (1, 9, 22 / 1024), (6, 0, 1 / 32)],
)
def test_mcnemar_is_the_binomial_test(lost: int, gained: int, p: float) -> None:
    assert mcnemar_p(*rights(lost, gained, 100)) == pytest.approx(p)


@pytest.mark.parametrize("right", [(np.ones(3, bool), np.ones(4, bool)), (np.ones(0, bool),) * 2])
def test_other_or_no_rows_are_refused(right: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        accuracy_difference(*right)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_difference(pearson, (right[0], right[0]), (right[1], right[1]), seed=0)


def test_bootstrap_is_repeatable_and_json() -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 3, 300)
    before, after = (np.where(random.random(300) < 0.9, truth, 0) for _ in range(2))
    found = [
        bootstrap_difference(macro_f1, (before, truth), (after, truth), seed=seed, resamples=200)
        for seed in (5, 5, 6)
    ]
    assert found[0] == found[1] != found[2]
    assert found[0].estimate == macro_f1(after, truth) - macro_f1(before, truth)
    assert found[0].low < found[0].estimate < found[0].high
    assert found[0].changed == int((before != after).sum())
    assert json.loads(json.dumps(found[0].to_json())) == vars(found[0])


def test_bootstrap_of_no_change_does_not_claim_certainty() -> None:
    rows = (np.zeros(981, int), np.zeros(981, int))
    found = bootstrap_difference(macro_f1, rows, rows, seed=0, scale=1.0)
    assert (found.low, found.high) == pytest.approx((-0.003049, 0.003049), abs=1e-6)
    unknown = bootstrap_difference(macro_f1, rows, rows, seed=0)
    assert (unknown.low, unknown.high, unknown.changed) == (0.0, 0.0, 0)


def test_bootstrap_covers_as_often_as_it_says() -> None:
    """Differences of two correlations with the truth; the true one is known by construction."""
    random = np.random.default_rng(0)
    true = 1 / math.sqrt(1.5) - 1 / math.sqrt(1.25)
    held = 0
    runs = 300
    for run in range(runs):
        truth, noise, more = random.normal(size=(3, 200))
        before = truth + 0.5 * noise
        after = truth + 0.5 * noise + 0.5 * more
        found = bootstrap_difference(pearson, (before, truth), (after, truth), seed=run, resamples=300)
        held += found.low <= true <= found.high
    # 95 % of 300 within four standard deviations; percentile intervals fall short by a percent or two.
    assert 0.90 <= held / runs <= 0.99
