"""What every command shares: --json, --config, --debug, progress, tables, one-line errors, exit codes."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import typer

from bertmp.cli.options import former_name, parameters_of, values_of
from bertmp.core.errors import BertmpError, InputError
from bertmp.core.options import Options
from bertmp.core.progress import Notice, ProgressCallback

if TYPE_CHECKING:
    from rich.table import Table


EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class CommandResult:
    """What a command found: `value` for `--json`, `text` for people, and the exit code.

    `text` is a string or a function that prints to the Rich console it is given.
    """

    value: Any
    text: str | Callable[[Any], None] = ""
    exit_code: int = 0


def fail(error: BertmpError) -> NoReturn:
    """Prints `error: MESSAGE` on one line of standard error and exits with the error's code."""
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    raise SystemExit(error.exit_code)


def _interrupted() -> SystemExit:
    print("interrupted", file=sys.stderr, flush=True)  # noqa: T201
    return SystemExit(EXIT_INTERRUPTED)


def _show(result: CommandResult, as_json: bool) -> None:
    if as_json:
        if result.value is not None:
            print(json.dumps(result.value, ensure_ascii=False))  # noqa: T201
    elif callable(result.text):
        from rich.console import Console

        result.text(Console(soft_wrap=True, highlight=False))
    elif result.text:
        print(result.text)  # noqa: T201
    sys.stdout.flush()


def add_command(app: typer.Typer, name: str, function: Callable[..., CommandResult], example: str) -> None:
    """Registers a function of an Options object as the command `name`.

    Args:
        function: takes `options`, whose class gives the command's parameters, and `as_json` too where it
            prints while it runs; its docstring is the help.
        example: one command line, shown at the end of `--help`.
    """
    hints = get_type_hints(function)
    options: type[Options] = hints["options"]

    def run(*, as_json: bool, config: Path | None, debug: bool, **given: Any) -> None:
        with report_errors(debug):
            keywords = {"as_json": as_json} if "as_json" in hints else {}
            result = function(options(**values_of(options, given)), **keywords)
            _show(result, as_json)
            if result.exit_code:
                raise typer.Exit(result.exit_code)

    parameters = parameters_of(options)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__ = function.__doc__
    app.command(name, epilog=f"Example: {example}", context_settings={"obj": options})(run)


@contextmanager
def report_errors(debug: bool) -> Iterator[None]:
    """Turns every foreseen error into one line and its exit code; `debug` shows the traceback before it."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted() from None
    except BrokenPipeError:  # the reader of our output exited (`| head`); nothing is wrong with the command
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except (BertmpError, OSError, MemoryError) as error:
        if debug or os.environ.get("BERTMP_DEBUG"):
            traceback.print_exception(error)
        if isinstance(error, MemoryError):
            fail(InputError("not enough memory", "", "use a smaller batch, graph or model"))
        if isinstance(error, OSError):
            what = error.strerror or str(error)
            fail(InputError(what, error.filename or "", "check the path and the disk"))
        fail(error)


def run_app(app: typer.Typer, interrupts: Interrupts | None = None) -> None:
    """Runs the command line; usage errors are one line like every other error.

    Args:
        interrupts: knows whether Ctrl-C was pressed.
    """
    try:
        with report_errors(debug="--debug" in sys.argv):
            code = app(standalone_mode=False)
    except Exception as error:
        if interrupts is not None and interrupts.noted:  # what a library made of the interrupt
            raise _interrupted() from None
        # Typer keeps its own copy of click's exceptions in some versions: known by what they offer.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        if not describe():  # no command was given, and the help has been shown
            raise SystemExit(InputError.exit_code) from None
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "bertmp"
        fail(former_name(error) or InputError(describe().rstrip("."), path, f"see '{path} --help'"))
    if code == EXIT_INTERRUPTED:  # Typer took the interrupt for itself
        raise _interrupted()
    raise SystemExit(code if isinstance(code, int) else 0)


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


@contextmanager
def progress_bar(*, log: bool = True, transfers: bool = False) -> Iterator[ProgressCallback]:
    """A callback that shows progress on standard error: lines, and one bar where that is a terminal.

    Args:
        log: whether messages without a count stay as lines; otherwise only a `Notice` does, and each of the
            others replaces the one before.
        transfers: whether counts are bytes; each transfer is then a line where there is no terminal.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = [progress.TextColumn("{task.description}", markup=False), progress.BarColumn()]
    if transfers:
        columns += [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    else:
        columns += [progress.MofNCompleteColumn(), progress.TimeRemainingColumn()]
    bar = progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=None)

    def show(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        begins = transfers and not console.is_terminal and message != bar.tasks[task].description
        notice = isinstance(message, Notice)
        if begins or notice or (log and completed is None):
            console.print(message, markup=False)
        if notice:
            return
        if completed is not None or not log:
            bar.start()  # not before there is something to show: a process of torchrun may have nothing
            bar.update(task, description=message, completed=completed or 0, total=total or None)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


def new_table(
    rows: Iterable[Sequence[Any]], columns: Sequence[str], numbers: Sequence[str] = (), title: str = ""
) -> Table:
    """A table with columns of text, then right-aligned columns of numbers; without a head if none is named.

    Args:
        rows: of cells, which are shown as `str` gives them; Rich's markup in them applies.
    """
    from rich import box
    from rich.table import Table

    look: Any = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD, "pad_edge": False}
    table = Table(title=title or None, show_header=any((*columns, *numbers)), **look)
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    return table
