"""Threads that run the graph: a text waits for no batch but its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .graph import Batching


class Job(Protocol):
    """Something to run."""

    @property
    def length(self) -> int:
        """Its tokens."""


class Runner:
    """Threads with one queue.

    Args:
        run: runs jobs together, and sees to their answers; called in several threads.
        batching: what may share a run.
        threads: how many runs at once.
        waiting: how many jobs may wait; more stay in the server's own queue, where they are counted.
    """

    def __init__(
        self, run: Callable[[Sequence[Any]], None], batching: Batching, threads: int, waiting: int
    ) -> None:
        self._run, self._batching, self._waiting = run, batching, waiting
        self._jobs: list[Any] = []  # the oldest first
        self._changed = threading.Condition()
        self._idle, self._stopped = 0, False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, jobs: Sequence[Job]) -> None:
        """Adds jobs, and returns when few enough wait."""
        with self._changed:
            self._jobs += jobs
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._jobs) < self._waiting)

    def stop(self) -> None:
        """Ends the threads once all jobs are done."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            self._run(jobs)

    def _take(self) -> list[Any]:
        """The oldest job and what may share its run; none where all is done and over."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs or self._stopped)
            share = -(-len(self._jobs) // self._idle)  # idle threads get their part
            self._idle -= 1
            if not self._jobs:
                return []
            chosen = self._batching.around([job.length for job in self._jobs], share)
            taken = [self._jobs[number] for number in chosen]
            for number in sorted(chosen, reverse=True):
                del self._jobs[number]
            self._changed.notify_all()
            return taken
