"""Makes a running Triton load a model again, whose workers died, hang or answer wrong; and how often."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from bertmp.serve.http_request import Endpoint
from bertmp.serve.triton_client import LOAD_TIMEOUT
from bertmp.serve.workers import Worker

WITHIN_SECONDS = 60.0
"""The time in which repairs are counted."""
LONGEST_WAIT = 4.0
"""Seconds at most before something is repaired once more."""


@dataclass
class RepairBudget:
    """How often something may be repaired, and how soon again.

    Attributes:
        most: repairs within `WITHIN_SECONDS`, of all targets together.
        done: when the last ones were, in seconds of the monotonic clock, and of what.
    """

    most: int
    done: deque[tuple[float, str]] = field(default_factory=deque)

    def take(self, target: str, now: float) -> float | None:
        """Counts a repair: the seconds to wait before it; None where there were too many."""
        while self.done and now - self.done[0][0] > WITHIN_SECONDS:
            self.done.popleft()
        if len(self.done) >= self.most:
            return None
        again = sum(before == target for _, before in self.done)
        self.done.append((now, target))
        return min(LONGEST_WAIT, 0.25 * 2 ** (again - 1)) if again else 0.0

    def give_back(self) -> None:
        """The last repair did not take place."""
        self.done.pop()


class Deploying(Exception):
    """A deployment is changing the model right now; it is repaired afterwards."""


def is_deploying(repository: Path, model: str) -> bool:
    """Whether a deployment is changing the model right now."""
    try:
        with _no_deployment(repository, model):
            return False
    except Deploying:
        return True


def reload_model(
    server: Endpoint, repository: Path, model: str, version: int, workers: Sequence[Worker]
) -> str:
    """Loads a model again. Its sound workers answer until the new ones are there.

    Args:
        server: the HTTP port, with the key.
        version: the version that is loaded.
        workers: those that hang; they are killed, since Triton would wait for them.

    Returns:
        Why it does not load; empty where it does.

    Raises:
        Deploying: nothing was done.
    """
    with _no_deployment(repository, model):
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        path = f"/v2/repository/models/{model}"
        if not _touch(repository / model / str(version)):
            server.post(f"{path}/unload", timeout=LOAD_TIMEOUT)
        reply = server.post(f"{path}/load", timeout=LOAD_TIMEOUT)
        return "" if reply.ok else reply.reason


def _touch(version: Path) -> bool:
    """Makes a version look changed: Triton loads nothing again that is as it was. False where that fails."""
    with suppress(OSError):
        files = sorted(path for path in version.iterdir() if path.is_file())
        code = [path for path in files if path.name == "model.py"]
        for path in [*code, *files][:1]:
            os.utime(path)
            return True
    return False


@contextmanager
def _no_deployment(repository: Path, model: str) -> Iterator[None]:
    """Keeps deployments of the model off, where there were any.

    Raises:
        Deploying: one is under way.
    """
    path = repository / model.removesuffix("_encoder") / ".lock"
    lock = FileLock(path)
    try:
        if path.is_file():
            lock.acquire(timeout=0)
    except Timeout as error:
        raise Deploying from error
    except OSError:  # a read-only repository: nobody deploys there
        pass
    try:
        yield
    finally:
        lock.release()
