"""The wall clock over a training run, from the outside: waiting for batches counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Watches a run as a progress bar does, and notes when each step was done.

    Attributes:
        marks: seconds on a monotonic clock: before the first step, then after every step.
        losses: of each step.
    """

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.losses: list[float] = []

    @contextmanager
    def progress(self, total: int, done: int) -> Iterator[Stopwatch]:
        """What `bertmp.train(progress=…)` takes."""
        self.marks = [time.perf_counter()]
        yield self

    def step(self, step: int, loss: float, rate: float) -> None:
        self.marks.append(time.perf_counter())
        self.losses.append(loss)

    def say(self, text: str) -> None:
        return None

    def seconds(self, first: int = 0) -> float:
        """From the end of step `first` (0: from before the first step) to the end of the last."""
        return self.marks[-1] - self.marks[first]
