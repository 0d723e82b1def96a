"""The processes that run a server's Python models, as the operating system sees them.

Triton starts one per model instance, and notices neither that one was killed nor that one was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import psutil

_STUB = "triton_python_backend_stub"
State = Literal["running", "stopped", "killed"]
"""Stopped: by SIGSTOP. Killed: it has ended, and Triton, which reaps what it ends itself, did not notice."""


@dataclass(frozen=True)
class Worker:
    """One process.

    Attributes:
        pid: its number.
        instance: the model instance that it runs, e.g. `trec_0_1`; empty where it ended before it was seen.
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
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._instances: dict[int, str] = {}
        self._ignored: frozenset[int] = frozenset()

    def ignore(self, workers: Iterable[Worker]) -> None:
        """Leaves workers out from now on: others work in their place, and Triton does not reap them."""
        self._ignored |= {worker.pid for worker in workers}

    def server_is_stopped(self) -> bool:
        """Whether the server itself was stopped by SIGSTOP."""
        try:
            return bool(psutil.Process(self._server).status() == psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def look(self) -> tuple[Worker, ...]:
        """Every worker that there is."""
        try:
            children = psutil.Process(self._server).children()
        except psutil.NoSuchProcess:
            return ()
        watched = [child for child in children if child.pid not in self._ignored]
        found = [worker for child in watched if (worker := self._worker(child)) is not None]
        self._instances = {worker.pid: worker.instance for worker in found}
        return tuple(found)

    def _worker(self, child: psutil.Process) -> Worker | None:
        try:
            status = child.status()
            command = [] if status == psutil.STATUS_ZOMBIE else child.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        if command:
            if not command[0].endswith(_STUB):
                return None
            self._instances[child.pid] = command[8] if len(command) > 8 else ""
        state: State = "running"
        if status == psutil.STATUS_ZOMBIE:
            state = "killed"
        elif status == psutil.STATUS_STOPPED:
            state = "stopped"
        return Worker(child.pid, self._instances.get(child.pid, ""), state)


def persistent(before: Iterable[Worker], now: Iterable[Worker]) -> list[Worker]:
    """The workers that were not running at two looks: one that Triton ends is a zombie for a moment, too."""
    faulty = {worker.pid for worker in before if worker.state != "running"}
    return [worker for worker in now if worker.state != "running" and worker.pid in faulty]
