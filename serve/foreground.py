"""`bertmp serve`: a watched Triton server in the foreground."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from types import FrameType

from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.serve.log_lines import to_json
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.watchdog import Watchdog


@keywords_of(ServeOptions)
def serve_repository(options: ServeOptions) -> None:
    """Runs a Triton server in the foreground until Ctrl-C, or until SIGTERM, after which it returns.

    A watchdog asks every model at a period, tells on the health port whether the server is ready, and repairs
    what breaks.

    Raises:
        KeyboardInterrupt: it was stopped by Ctrl-C.
        InputError: an empty repository, a taken port, a model that does not load, a bad key or certificate,
            or a Triton with known vulnerabilities that would listen beyond this machine.
        MissingComponent: Triton is not set up.
        BertmpError: repairs did not help.
    """
    if options.log_format == "json":
        options = replace(options, progress=_as_json(options.progress))
    with suppress(_Terminated), _signals_end_block() as signals, Watchdog(options) as watchdog:
        options.on_ready(watchdog.running)
        while not watchdog.has_ended(_POLL_SECONDS):
            signals.raise_noted()
        raise watchdog.failure()


def _as_json(progress: ProgressCallback) -> ProgressCallback:
    def log(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        progress(to_json(message), completed, total)

    return log


_POLL_SECONDS = 0.2


class _Terminated(BaseException):
    """SIGTERM: how service managers and containers stop a server."""


class _Signals:
    """The first signal that came."""

    def __init__(self) -> None:
        self._noted: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self._noted = self._noted or number
        self.raise_noted()

    def raise_noted(self) -> None:
        """Raises it once more.

        A signal that comes just before a wait is handled after it; what is raised in a finalizer is lost.
        """
        if self._noted is not None:
            raise _Terminated if self._noted == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def _signals_end_block() -> Iterator[_Signals]:
    """SIGTERM ends the block; a closed terminal does so as Ctrl-C does."""
    signals = _Signals()
    with ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            restored.callback(signal.signal, number, signal.signal(number, signals.handle))
        yield signals
