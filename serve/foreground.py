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
    with suppress(_Terminated), _signals_end_block(), Watchdog(options) as watchdog:
        options.on_ready(watchdog.running)
        watchdog.wait()


def _as_json(progress: ProgressCallback) -> ProgressCallback:
    def log(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        progress(to_json(message), completed, total)

    return log


class _Terminated(BaseException):
    """SIGTERM: how service managers and containers stop a server."""


@contextmanager
def _signals_end_block() -> Iterator[None]:
    """SIGTERM ends the block; a closed terminal does so as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            restored.callback(signal.signal, number, signal.signal(number, interrupt))
        yield
