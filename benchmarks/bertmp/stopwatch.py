"""The time of each step of a run."""

from __future__ import annotations

import time


class Stopwatch:
    """A progress callback that notes when each step was done.

    Attributes:
        marks: seconds on a monotonic clock: before the first step, then after every step.
    """

    def __init__(self) -> None:
        self.marks: list[float] = []

    def __call__(self, message: str, completed: int | None = None, total: int | None = None, /) -> None:
        if completed is not None:
            self.marks.append(time.perf_counter())

    def seconds(self, first: int = 0) -> float:
        """From the end of step `first` (0: from before the first step) to the end of the last."""
        return self.marks[-1] - self.marks[first]
