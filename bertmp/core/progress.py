"""How a library call reports its progress to its caller; without a callback it prints nothing."""

from __future__ import annotations

from typing import Protocol


class Notice(str):
    """A message that stays on the screen: how the work was understood, where that is not obvious."""

    __slots__ = ()


class ProgressCallback(Protocol):
    """Called with a message and, where the amount of work is known, with how much of it is done.

    A call without `completed` is a line for the log, such as `training in bf16 on cpu`; one with it is the
    state of the current work, which replaces the state before. `print` is a valid callback.
    A `Notice` is for the user's eyes even where a command shows no log.
    """

    def __call__(self, message: str, completed: int | None = None, total: int | None = None, /) -> None: ...


def null_progress(message: str, completed: int | None = None, total: int | None = None, /) -> None:
    """Does nothing: the default of every function that takes a callback."""
