"""What every command shares: --json, --config, --debug, one-line errors and the exit codes."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bertmp.cli.sigint import Interrupts
from bertmp.core.errors import BertmpError, InputError
from bertmp.core.io import read_toml

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """What a command found: `value` for `--json`, `text` for people, and the exit code.

    `text` is a string or a function that prints to the Rich console it is given.
    """

    value: Any
    text: str | Callable[[Any], None] = ""
    exit_code: int = 0


def fail(message: str, code: int) -> None:
    """Prints `error: MESSAGE` on one line of standard error and leaves with `code`."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)  # noqa: T201
    raise SystemExit(code)


def _interrupted() -> SystemExit:
    print("interrupted", file=sys.stderr, flush=True)  # noqa: T201
    return SystemExit(EXIT_INTERRUPTED)


def _show(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome.value, ensure_ascii=False))  # noqa: T201
    elif callable(outcome.text):
        from rich.console import Console

        outcome.text(Console(soft_wrap=True, highlight=False))
    elif outcome.text:
        print(outcome.text)  # noqa: T201
    sys.stdout.flush()


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Lets a TOML file give the defaults of this command's options; the command line wins."""
    if path is None:
        return None
    tables = read_toml(path)
    options = {parameter.name for parameter in context.command.params}
    settings = {key.replace("-", "_"): value for key, value in tables.items()}
    unknown = sorted(set(settings) - options)
    if unknown:
        raise InputError(f"unknown setting '{unknown[0]}'", path, f"see '{context.command_path} --help'")
    context.default_map = {**(context.default_map or {}), **settings}
    return path


_COMMON = {
    "as_json": Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")
    ],
    "config": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            is_eager=True,
            callback=_read_config,
            help="Options from a TOML file; the command line wins.",
        ),
    ],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}
_DEFAULTS: dict[str, Any] = {"as_json": False, "config": None, "debug": False}


def command(
    app: typer.Typer, name: str, example: str
) -> Callable[[Callable[..., Outcome]], Callable[..., None]]:
    """Registers a function that returns an Outcome as the command `name`, with the options all share.

    Args:
        example: one command line, shown at the end of `--help`.
    """

    def register(function: Callable[..., Outcome]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**options: Any) -> None:
            as_json, debug = options.pop("as_json"), options.pop("debug")
            options.pop("config")
            with errors_in_one_line(debug):
                outcome = function(**options)
                _show(outcome, as_json)
                if outcome.exit_code:
                    raise typer.Exit(outcome.exit_code)

        signature = inspect.signature(function, eval_str=True)
        shared = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[key], annotation=kind)
            for key, kind in _COMMON.items()
        ]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), *shared], return_annotation=None
        )
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        app.command(name, epilog=f"Example: {example}")(run)
        return run

    return register


class errors_in_one_line:  # noqa: N801  (reads as the sentence it is in a with statement)
    """Turns every foreseen error into one line and its exit code; `debug` shows the traceback before it."""

    def __init__(self, debug: bool) -> None:
        self.debug = debug or bool(os.environ.get("BERTMP_DEBUG"))

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            raise _interrupted()
        if error is None or isinstance(error, SystemExit):
            return
        if self.debug and isinstance(error, (BertmpError, OSError, MemoryError)):
            traceback.print_exception(error)
        if isinstance(error, BertmpError):
            fail(str(error), error.exit_code)
        if isinstance(error, BrokenPipeError):
            # The reader of our output left (`| head`); nothing is wrong with the command.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0)
        if isinstance(error, MemoryError):
            fail(str(InputError("not enough memory", "", "use a smaller batch, graph or model")), EXIT_USAGE)
        if isinstance(error, OSError):
            where = error.filename or ""
            fail(
                str(InputError(error.strerror or str(error), where, "check the path and the disk")),
                EXIT_USAGE,
            )


def run_app(app: typer.Typer, interrupts: Interrupts | None = None) -> None:
    """Runs the command line; usage errors are one line like every other error.

    Args:
        interrupts: knows whether Ctrl-C was pressed.
    """
    try:
        with errors_in_one_line(debug="--debug" in sys.argv):
            code = app(standalone_mode=False)
    except Exception as error:
        if interrupts is not None and interrupts.noted:  # what a library made of the interrupt
            raise _interrupted() from None
        # Typer keeps its own copy of click's exceptions in some versions: known by what they offer.
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        if not describe():  # no command was given, and the help has been shown
            raise SystemExit(EXIT_USAGE) from None
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "bertmp"
        fail(str(InputError(describe().rstrip("."), path, f"see '{path} --help'")), EXIT_USAGE)
    if code == EXIT_INTERRUPTED:  # Typer took the interrupt for itself
        raise _interrupted()
    raise SystemExit(code if isinstance(code, int) else 0)
