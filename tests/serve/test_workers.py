"""What a worker's process shows of itself, and what is made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertmp.serve import workers
from bertmp.serve.server_config import BACKENDS
from bertmp.serve.workers import WorkerWatch

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from cpu_session.worker import Progress
progress = Progress()
print(flush=True)
for line in sys.stdin:
    progress.step() if line == "step\\n" else progress.__exit__()
    print(flush=True)
"""


class StandIn:
    """A process with the arguments of Triton's stub that shows its progress as a text model's worker does."""

    def __init__(self, folder: Path) -> None:
        stub = folder / "triton_python_backend_stub"
        stub.symlink_to(sys.executable)
        arguments = ("-S", "-c", CODE, str(BACKENDS / "text_model"), "5", "6", "7", "m_0_0")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([str(stub), *arguments], stdin=pipe, stdout=pipe, text=True)
        self._wait()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.readline()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[StandIn]:
    found = StandIn(tmp_path)
    with found.process as process:
        yield found
        process.kill()


class Clock:
    """The monotonic clock of the module under test."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    return clock


def state(watch: WorkerWatch) -> str:
    (found,) = watch.look()
    return found.state


def test_worker_that_is_at_the_same_step_for_longer_than_the_patience_is_stuck(
    worker: StandIn, clock: Clock
) -> None:
    watch = WorkerWatch(os.getpid(), patience=2.0)
    worker.tell("step")
    for seconds, expected in ((0, "running"), (1, "running"), (1, "running"), (0.5, "stuck")):
        clock.now += seconds
        assert state(watch) == expected
    worker.tell("step")
    clock.now += 0.5
    assert state(watch) == "running"


def test_worker_that_is_idle_or_gets_on_is_not_stuck(worker: StandIn, clock: Clock) -> None:
    watch = WorkerWatch(os.getpid(), patience=2.0)
    worker.tell("step")
    worker.tell("end")
    for _ in range(5):
        clock.now += 1
        assert state(watch) == "running"
    for _ in range(5):
        worker.tell("step")
        clock.now += 1
        assert state(watch) == "running"


def test_time_in_which_nobody_looked_does_not_count(worker: StandIn, clock: Clock) -> None:
    """A machine that was suspended, or a watchdog that was stopped."""
    watch = WorkerWatch(os.getpid(), patience=2.0)
    worker.tell("step")
    for _ in range(2):
        clock.now += 3600
        assert state(watch) == "running"
