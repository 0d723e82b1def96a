"""A stateless, vectorised, counter-based random generator.

Each number is the output of SplitMix64 (Steele et al. 2014) for a counter, with a key made of seed, epoch and
purpose. Sample 17 of epoch 3 has the same numbers in any batch, process or resumed run.
"""

from __future__ import annotations

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, UINT64 `[…]` → UINT64 `[…]`; products wrap around."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def key(*parts: int) -> np.ndarray:
    """A key of any integers, such as seed, epoch and purpose; UINT64 `[1]`."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = _mix(state + _STEP + _mix(np.array([part % 2**64], dtype=np.uint64)))
    return state


def split(parent: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """One key per counter, UINT64 `[n]`; `parent` is UINT64 `[1]` or `[n]`."""
    return _mix(parent + (counters.astype(np.uint64) + np.uint64(1)) * _STEP)


def uniform(parent: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), FP64 `[n]`."""
    return (split(parent, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def randint(parent: np.ndarray, counters: np.ndarray, limits: np.ndarray | int) -> np.ndarray:
    """Uniform integers in [0, `limits`), INT64 `[n]`; limits are at least 1."""
    return (uniform(parent, counters) * limits).astype(np.int64)
