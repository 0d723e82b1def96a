"""Ctrl-C that no library can swallow.

A KeyboardInterrupt is raised wherever the interpreter is. In the middle of a library's import or
of a callback it can be swallowed, or come out as some other error. So the interrupt is also noted: an error
that comes after it counts as the interrupt, and where nothing comes, it is raised once more.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_AFTER = 1.0
"""Seconds after which an interrupt that had no effect is raised once more."""


class Interrupts:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.noted = False

    def on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGINT."""
        self.noted = True
        self._watch()
        raise KeyboardInterrupt

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        """Raises the interrupt again, unless something is being tidied up because of it."""
        self._watch()  # this one may get lost as well
        if sys.exc_info()[0] is None:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER)


@contextmanager
def note_interrupts() -> Iterator[Interrupts]:
    """Notes Ctrl-C for the length of the block."""
    state = Interrupts()
    signal.signal(signal.SIGALRM, state.on_alarm)
    signal.signal(signal.SIGINT, state.on_interrupt)
    try:
        yield state
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
