"""Exact binomial probabilities and the Clopper-Pearson interval."""

from __future__ import annotations

import math
from collections.abc import Callable

_TINY = 1e-300
_TERMS = 20_000  # the fraction takes about the square root of the counts


def binomial_cdf(k: int, n: int, p: float) -> float:
    """The probability of at most `k` hits in `n` trials of probability `p`.

    The relative error is below 1e-8 for a million trials, less for fewer: that of factorials as logarithms.
    """
    if k < 0:
        return 0.0
    if k >= n or p <= 0.0:
        return 1.0
    return 0.0 if p >= 1.0 else _incomplete_beta(n - k, k + 1, 1.0 - p)


def clopper_pearson(k: int, n: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a probability, of which `k` in `n` trials were hits.

    Both tails have at most half of `1 - confidence` (Clopper and Pearson 1934, Biometrika 26, 404-413).
    """
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if k == 0 else _root(lambda p: tail - (1.0 - binomial_cdf(k - 1, n, p)))
    high = 1.0 if k == n else _root(lambda p: binomial_cdf(k, n, p) - tail)
    return low, high


def zero_bound(n: int, confidence: float) -> float:
    """The largest probability at which no hit in `n` trials has a probability of `1 - confidence`.

    About 3 / `n` for 0.95 (the rule of three).
    """
    return -math.expm1(math.log1p(-confidence) / n)


def _root(falling: Callable[[float], float]) -> float:
    """Where a function that falls over 0 … 1 is 0, by bisection to the last bits."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2.0) < high:
        low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
        if high - low < 1e-15 * high:
            break
    return (low + high) / 2.0


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 < x < 1 (Abramowitz and Stegun, 26.5.8)."""
    if x > (a + 1.0) / (a + b + 2.0):  # where the fraction converges slowly
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction 1 + d1 / (1 + d2 / (1 + …)), by Lentz's method."""
    value = upper = 1.0
    lower = 0.0
    for term in range(1, _TERMS):
        m, odd = divmod(term, 2)
        top = -(a + m) * (a + b + m) if odd else m * (b - m)
        step = top * x / ((a + term - 1.0) * (a + term))
        lower = 1.0 / (1.0 + step * lower or _TINY)
        upper = 1.0 + step / upper or _TINY
        value *= upper * lower
        if abs(upper * lower - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"no convergence of I_{x}({a}, {b})")
