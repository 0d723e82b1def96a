"""Errors that the user can fix: each prints as one line and has its exit code.

Every error that reaches the command line prints as `error: WHAT (WHERE): what to do`.
"""

from __future__ import annotations

from pathlib import Path


class BertmpError(Exception):
    """Base of every error that prints as one line.

    Args:
        what: what is wrong, a short clause without a full stop.
        where: the file, line, option or address it concerns; empty where the clause is enough.
        todo: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str | Path = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, str(where), todo
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        todo = f": {self.todo}" if self.todo else ""
        return " ".join(f"{self.what}{where}{todo}".split())


class GateFailed(BertmpError):
    """A check that the user asked for failed: parity, precision verification, promotion."""

    exit_code = 1


class BuildFailed(BertmpError):
    """The engine builder refused the network, crashed or was killed."""

    exit_code = 1


class ServerFault(BertmpError):
    """A server failed at a request that may well be right: a dead worker, an overload, no answer in time.

    Args:
        what, where, todo: as for every error.
        retryable: whether the same request may succeed a moment later.
    """

    exit_code = 1

    def __init__(self, what: str, where: str | Path = "", todo: str = "", retryable: bool = False) -> None:
        super().__init__(what, where, todo)
        self.retryable = retryable


class AnswerTooLate(ServerFault):
    """A server did not answer before the request's deadline."""


class InputError(BertmpError):
    """Bad input or usage: a file, an option or a request that cannot be used."""

    exit_code = 2


class DiskFull(InputError):
    """A disk, a quota or a limit on the size of files does not take what is written."""


class RequestRefused(InputError):
    """A server refuses a request for what is in it; the same request is always refused."""


class TrainingStopped(BertmpError):
    """The divergence monitor stopped the training."""

    exit_code = 3


class MissingComponent(BertmpError):
    """Something that is installed separately is missing; `bertmp doctor` says how to install it."""

    exit_code = 4


class DamagedComponent(MissingComponent):
    """Something that is installed separately is there, and was changed so that it cannot be used."""

    exit_code = 2


def short_message(error: BaseException, length: int = 200) -> str:
    """What an exception says, in one line of at most `length` characters."""
    words = " ".join(str(error).split())
    if len(words) <= length:
        return words
    # What a native library found stands last, behind the place in its sources.
    return f"{words[: length // 2]} … {words[-length // 2 :]}"
