"""Shows in the worker's name that it gets on: the watchdog replaces one that does not.

Triton gives requests to the other workers meanwhile, and nothing else tells that this one will not answer.
"""

from __future__ import annotations

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
        _show(IDLE)

    def step(self) -> None:
        """Another step is done."""
        self._steps = (self._steps + 1) % 100_000
        _show(f"{ANSWERING} {self._steps}")

    def __enter__(self) -> None:
        self.step()

    def __exit__(self, *_: object) -> None:
        _show(IDLE)


def _show(name: str) -> None:
    with suppress(OSError), open(NAME, "wb", buffering=0) as stream:
        stream.write(name.encode())
