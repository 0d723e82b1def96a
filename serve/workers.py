"""The processes that run a server's Python models, as the operating system sees them.

Triton starts one per model instance, and notices neither that one was killed nor that one was stopped or is
stuck: the others of its model answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import psutil

SEARCH_SECONDS = 2.0
"""Between two searches for new workers, which look at every process of the machine."""

_STUB, _INSTANCE = "triton_python_backend_stub", 8
"""The workers' program, and which of its arguments is the instance's name."""

State = Literal["running", "stopped", "stuck", "killed"]
"""Stopped: by SIGSTOP. Stuck: in the middle of an answer, without progress. Killed: it has ended, and Triton,
which reaps what it ends itself, did not notice."""

ANSWERING = "answering"
"""How the name of a worker's process begins while it answers; the rest changes with each step. Versions that
bertmp 0.1 deployed, and models that others made, do not show it."""
_LONGEST_LOOK = 1.0
"""The most seconds without progress that count between two looks: we may have been stopped ourselves."""


@dataclass(frozen=True)
class Worker:
    """One process.

    Attributes:
        pid: its number.
        instance: the model instance that it runs, e.g. `trec_0_1`.
        state: how it is.
    """

    pid: int
    instance: str
    state: State

    def model(self, models: Iterable[str]) -> str | None:
        """Which of the models it runs: Triton calls instances MODEL_GROUP or MODEL_GROUP_NUMBER."""
        for model in sorted(models, key=len, reverse=True):
            rest = self.instance.removeprefix(f"{model}_")
            if rest != self.instance and rest.replace("_", "").isdecimal():
                return model
        return None


class WorkerWatch:
    """Looks at a server's workers, and remembers what each was running.

    Args:
        server: Triton's process.
        patience: seconds without progress in the middle of an answer after which a worker is stuck.
    """

    def __init__(self, server: int, patience: float = math.inf) -> None:
        self._server = server
        self._children: list[psutil.Process] = []
        self._searched = -math.inf
        self._instances: dict[int, str] = {}
        self._ignored: frozenset[int] = frozenset()
        self._patience = patience
        self._steps: dict[int, _Step] = {}

    def ignore(self, workers: Iterable[Worker]) -> None:
        """Leaves workers out from now on: others work in their place, and Triton does not reap them."""
        self._ignored |= {worker.pid for worker in workers}
        self._searched = -math.inf

    def processes(self, workers: Iterable[Worker]) -> list[psutil.Process]:
        """Those of the workers that are there."""
        numbers = {worker.pid for worker in workers}
        return [child for child in self._children if child.pid in numbers]

    def server_is_stopped(self) -> bool:
        """Whether the server itself was stopped by SIGSTOP."""
        try:
            return bool(psutil.Process(self._server).status() == psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def look(self) -> tuple[Worker, ...]:
        """Every worker that there is; new ones after `SEARCH_SECONDS` at the latest."""
        if time.monotonic() - self._searched > SEARCH_SECONDS:
            self._search()
        watched = [child for child in self._children if child.pid not in self._ignored]
        return tuple(worker for child in watched if (worker := self._worker(child)) is not None)

    def _search(self) -> None:
        """Finds the server's children, among all processes of the machine."""
        self._searched = time.monotonic()
        try:
            self._children = psutil.Process(self._server).children()
        except psutil.NoSuchProcess:
            self._children = []
        there = {child.pid for child in self._children}
        self._instances = {pid: instance for pid, instance in self._instances.items() if pid in there}
        self._steps = {pid: step for pid, step in self._steps.items() if pid in there}

    def _worker(self, child: psutil.Process) -> Worker | None:
        """A worker; None for another process, and for one that ended before it was seen."""
        try:
            status, name = child.status(), child.name()
            if child.pid not in self._instances and status != psutil.STATUS_ZOMBIE:
                command = child.cmdline()
                if len(command) > _INSTANCE and command[0].endswith(_STUB):
                    self._instances[child.pid] = command[_INSTANCE]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        if child.pid not in self._instances:
            return None
        state: State = "running"
        if status == psutil.STATUS_ZOMBIE:
            state = "killed"
        elif status == psutil.STATUS_STOPPED:
            state = "stopped"
        elif self._without_progress(child.pid, name) > self._patience:
            state = "stuck"
        return Worker(child.pid, self._instances[child.pid], state)

    def _without_progress(self, pid: int, name: str) -> float:
        """The seconds for which a worker has been at the same step of its answers, as far as was seen."""
        now, before = time.monotonic(), self._steps.get(pid)
        seconds = 0.0
        if before is not None and before.name == name and name.startswith(ANSWERING):
            seconds = before.seconds + min(now - before.seen, _LONGEST_LOOK)
        self._steps[pid] = _Step(name, now, seconds)
        return seconds


@dataclass(frozen=True)
class _Step:
    """What a worker was at, when that was seen last, and for how many seconds it had been at it then."""

    name: str
    seen: float
    seconds: float


def persistent(before: Iterable[Worker], now: Iterable[Worker]) -> list[Worker]:
    """The workers that were not running at two looks: one that Triton ends is a zombie for a moment, too."""
    faulty = {worker.pid for worker in before if worker.state != "running"}
    return [worker for worker in now if worker.state != "running" and worker.pid in faulty]
