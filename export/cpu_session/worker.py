"""A worker of a server as a process: it gives way to those that answer clients, and shows that it gets on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

NICE = 10
"""How much a process or a thread gives way: it gets a tenth of the time of one that does not."""
STAND_IN = ("_canary", "_canary_encoder")
"""How the names end under which a deployment tries a new version."""


def let_live_versions_go_first(model: str) -> None:
    """Lowers this worker's priority for good, where it is one of a version that is only tried.

    Args:
        model: the model's name.
    """
    if model.endswith(STAND_IN):
        give_way()


def give_way() -> None:
    """Lowers this process's priority for good, as far as the system allows."""
    with suppress(OSError):
        os.nice(NICE)


def at_low_priority(work: Callable[[], T]) -> T:
    """Calls `work` in a thread of lower priority, and waits for it: others answer meanwhile.

    On Linux each thread has a priority of its own, and nobody but root may raise one: one that is low already
    stays as it is.
    """

    def lower() -> None:
        thread = threading.get_native_id()
        with suppress(OSError):
            if sys.platform == "linux" and os.getpriority(os.PRIO_PROCESS, thread) < NICE:
                os.setpriority(os.PRIO_PROCESS, thread, NICE)

    with ThreadPoolExecutor(1, initializer=lower) as pool:
        return pool.submit(work).result()


NAME = "/proc/self/comm"
"""Where Linux takes a process's name, at most 15 characters; `ps` and `top` show it too."""
ANSWERING, IDLE = "answering", "idle"


class Progress:
    """The name of this process: `answering` and a number that changes with each step, or `idle`.

    The watchdog replaces a worker that does not get on. Triton gives requests to the others meanwhile, and
    nothing else tells that this one will not answer.

    A `with` block is the time in which requests are answered.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._file = -1
        with suppress(OSError):  # there is none beside Linux
            self._file = os.open(NAME, os.O_WRONLY)
        self._show(IDLE)

    def step(self) -> None:
        """Another step is done."""
        self._steps = (self._steps + 1) % 100_000
        self._show(f"{ANSWERING} {self._steps}")

    def _show(self, name: str) -> None:
        with suppress(OSError):
            os.write(self._file, name.encode())

    def __enter__(self) -> None:
        self.step()

    def __exit__(self, *_: object) -> None:
        self._show(IDLE)
