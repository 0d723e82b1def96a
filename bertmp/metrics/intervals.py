"""By how much a metric differs between two answers to the same rows, and how surely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bertmp.core.io import JsonSerializable
from bertmp.metrics.binomial import binomial_cdf, clopper_pearson, zero_bound

Rows = Sequence[NDArray]
"""Arrays of one entry per row, such as answers and truth: what a metric is computed from."""

RESAMPLES = 1000
"""Draws of a bootstrap; fewer leave a percentile interval's ends to chance."""


@dataclass(frozen=True)
class Interval(JsonSerializable):
    """A difference, after minus before, and its confidence interval.

    Attributes:
        estimate: the difference on these rows.
        low, high: the interval's ends.
        confidence: how often such intervals hold the true difference, from 0 to 1.
        rows: how many rows it comes from.
        changed: on how many of them the two differ; for an accuracy, how many became right or wrong.
        method: `exact` or `bootstrap`.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    rows: int
    changed: int
    method: str


@dataclass(frozen=True)
class Discordant(JsonSerializable):
    """The rows that only one of two answers has right.

    Attributes:
        lost: right before alone.
        gained: right after alone.
        rows: all rows.
    """

    lost: int
    gained: int
    rows: int

    @classmethod
    def of(cls, before_right: ArrayLike, after_right: ArrayLike) -> Discordant:
        """Counts BOOL `[rows]` twice.

        Raises:
            ValueError: no rows, or not the same number.
        """
        before, after = np.asarray(before_right, bool), np.asarray(after_right, bool)
        if before.shape != after.shape or before.ndim != 1 or not before.size:
            raise ValueError(f"need the same rows twice, at least one: {before.shape} and {after.shape}")
        return cls(int((before & ~after).sum()), int((after & ~before).sum()), before.size)

    @property
    def pairs(self) -> int:
        return self.lost + self.gained


def accuracy_difference(
    before_right: ArrayLike, after_right: ArrayLike, confidence: float = 0.95
) -> Interval:
    """The difference of two accuracies on the same rows, with an exact interval.

    The difference is π (2 θ − 1): π is the share of discordant rows, θ the share of gains among them. Given
    the number of discordant rows, gains are binomial, which is what McNemar's exact test rests on. Each
    share gets a Clopper-Pearson interval with half of the error probability, and the ends are the extremes
    of the product, so that the coverage is at least `confidence` whatever the shares are (Bonferroni).
    Without discordant rows θ is unknown, and all of the error probability goes to π, of which only one
    bound can be wrong: ±(1 − (1 − confidence)^(1 / rows)), the rule of three. That this case keeps the
    coverage is verified by enumeration in the tests. The product is that of Fay and Lumbard (2021,
    Statistics in Medicine 40, 1147-1159), who combine the shares less conservatively; why resampling or a
    normal approximation does not serve: Newcombe (1998, Statistics in Medicine 17, 2635-2650).

    Args:
        before_right: BOOL `[rows]`, where the reference is right.
        after_right: BOOL `[rows]`, where the other is.
        confidence: between 0 and 1.

    Raises:
        ValueError: no rows, or not the same number.
    """
    found = Discordant.of(before_right, after_right)
    low, high = difference_bounds(found, confidence)
    estimate = (found.gained - found.lost) / found.rows
    return Interval(estimate, low, high, confidence, found.rows, found.pairs, "exact")


def difference_bounds(found: Discordant, confidence: float) -> tuple[float, float]:
    """The ends of the interval of `accuracy_difference`, from the counts."""
    if not found.pairs:
        bound = zero_bound(found.rows, confidence)
        return -bound, bound
    each = 1.0 - (1.0 - confidence) / 2.0
    shares = clopper_pearson(found.pairs, found.rows, each)
    low, high = (2.0 * gains - 1.0 for gains in clopper_pearson(found.gained, found.pairs, each))
    return min(share * low for share in shares), max(share * high for share in shares)


def mcnemar_p(before_right: ArrayLike, after_right: ArrayLike) -> float:
    """The exact two-sided p of McNemar's test: whether gains and losses are equally likely.

    Twice the smaller binomial tail at one half (McNemar 1947, Psychometrika 12, 153-157); 1 where no row is
    discordant.

    Args:
        before_right: BOOL `[rows]`, where the reference is right.
        after_right: BOOL `[rows]`, where the other is.
    """
    found = Discordant.of(before_right, after_right)
    return min(1.0, 2.0 * binomial_cdf(min(found.lost, found.gained), found.pairs, 0.5))


def bootstrap_difference(
    metric: Callable[..., float],
    before: Rows,
    after: Rows,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    scale: float | None = None,
) -> Interval:
    """The difference of any metric on the same rows, with a percentile interval.

    Rows are drawn with replacement, the same for both sides, so that what they share cancels out (Efron and
    Tibshirani 1993, chapter 13). A row is what was drawn independently: a text or a sentence, not a
    token.

    Where no row changed, resampling shows no variation, which is no evidence of its absence. With `scale`
    the ends are then ± `scale` times the largest share of rows that may change unseen, as for an accuracy;
    without it both are 0 and `changed` is 0, which no verdict takes for certainty. Intervals from a handful
    of changed rows are too narrow: see `changed`.

    Args:
        metric: the metric of some rows; it gets each array of `before` or `after`, restricted to them.
        before: the reference's arrays, each `[rows, …]`, such as its answers and the truth.
        after: the other's, in the same order.
        seed: of the draws.
        resamples: how many there are.
        confidence: between 0 and 1.
        scale: how far the metric moves at most if all rows change: 1 for shares and F1, 2 for correlations.

    Raises:
        ValueError: no rows, or not the same number.
    """
    sizes = {len(array) for array in (*before, *after)}
    if len(sizes) != 1 or not (rows := sizes.pop()):
        raise ValueError("need the same rows in all arrays, at least one")
    changed = int(_differ(before, after, rows).sum())
    estimate = float(metric(*after) - metric(*before))
    if not changed:
        bound = 0.0 if scale is None else scale * zero_bound(rows, confidence)
        return Interval(estimate, -bound, bound, confidence, rows, 0, "bootstrap")
    random = np.random.default_rng(seed)
    found = np.empty(resamples)
    for number in range(resamples):
        drawn = random.integers(0, rows, rows)
        found[number] = metric(*(a[drawn] for a in after)) - metric(*(b[drawn] for b in before))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail]).tolist()
    return Interval(estimate, low, high, confidence, rows, changed, "bootstrap")


def _differ(before: Rows, after: Rows, rows: int) -> NDArray[np.bool_]:
    """Which rows differ in any array, BOOL `[rows]`."""
    different = np.zeros(rows, bool)
    for one, other in zip(before, after, strict=True):
        different |= (one != other).reshape(rows, -1).any(1)
    return different
