"""Shows in the worker's name that it gets on: the watchdog replaces one that does not.

Triton gives requests to the other workers meanwhile, and nothing else tells that this one will not answer.
"""

from __future__ import annotations

import os
from contextlib import suppress

NAME = "/proc/self/comm"
"""Where Linux takes a process's name, at most 15 characters; `ps` and `top` show it too."""
ANSWERING, IDLE = "answering", "idle"


class Progress:
    """The name of this process: `answering` and a number that changes with each step, or `idle`.

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
