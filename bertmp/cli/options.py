"""From an Options class to the parameters of a Typer command, and from a TOML file to their values."""

from __future__ import annotations

import inspect
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer

from bertmp.core.errors import InputError
from bertmp.core.io import read_toml
from bertmp.core.options import DeclaredOption, Options, declared_options, renamed

_TYPES = (str, int, float, bool, Path)


def parameters_of(options: type[Options]) -> list[inspect.Parameter]:
    """The parameters of a command that takes these options, for Typer to read."""
    shown = [declared for declared in declared_options(options) if declared.info.on_command_line]
    return [*map(_parameter, shown), *inspect.signature(_common, eval_str=True).parameters.values()]


def values_of(options: type[Options], given: dict[str, Any]) -> dict[str, Any]:
    """What Typer parsed, as keyword arguments of the Options class."""
    repeated = {declared.name for declared in declared_options(options) if declared.repeated}
    return {name: tuple(value or ()) if name in repeated else value for name, value in given.items()}


def _parameter(declared: DeclaredOption) -> inspect.Parameter:
    kind = declared.kind if declared.kind in _TYPES else str
    annotation = list[kind] if declared.repeated else kind  # type: ignore[valid-type]
    default = inspect.Parameter.empty if declared.default is MISSING else declared.default
    if declared.repeated and not declared.default:
        default = None
    optional = default is None
    hint: Any = Annotated[annotation | None if optional else annotation, _typer_info(declared, kind)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(declared.name, keyword, default=default, annotation=hint)


def _typer_info(declared: DeclaredOption, kind: type) -> Any:
    """What Typer shows of an option or argument."""
    info = declared.info
    help_text = describe(declared).replace("[", r"\[")  # Typer reads help as Rich's markup
    metavar = info.metavar or "|".join(info.choices) or None
    if info.positional:
        return typer.Argument(metavar=metavar, help=help_text)
    flag = declared.flag
    if kind is bool:
        metavar = None
        if declared.default is True and "/" not in flag:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
    return typer.Option(flag, metavar=metavar, help=help_text, rich_help_panel=info.group or None)


def describe(declared: DeclaredOption) -> str:
    """An option's help sentence with its range, and whether it may be repeated."""
    info = declared.info
    sentence = info.help.rstrip(".")
    notes = [declared.range_text] if declared.range_text else []
    if declared.repeated and not info.positional:
        notes.append("may be repeated")
    return f"{sentence} ({', '.join(notes)})." if notes else f"{sentence}."


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Lets a TOML file give the defaults of this command's options; only the command line beats it."""
    if path is None:
        return None
    options: type[Options] = context.obj
    known = {one.name: one for one in declared_options(options) if one.info.on_command_line}
    by_flag = {one.flag.split("/")[0].lstrip("-").replace("-", "_"): one.name for one in known.values()}
    former, settings, moved = renamed(options), {}, []
    for key, value in read_toml(path).items():
        name = key.replace("-", "_")
        name = by_flag.get(name, name)
        if name in former:
            moved.append(f"'{key}' is now '{former[name]}'")
            name = former[name]
        if name not in known:
            todo = "write the options at the top level, without tables" if isinstance(value, dict) else ""
            todo = todo or f"see '{context.command_path} --help'"
            raise InputError(f"unknown setting '{key}'", path, todo)
        if name in settings:
            what = f"'{name}' is set twice, once as '{key}'"
            raise InputError(what, path, "keep one of them")
        settings[name] = [value] if known[name].repeated and not isinstance(value, list) else value
    if moved:
        print(f"{path}: {', '.join(moved)}", file=sys.stderr)  # noqa: T201
    context.default_map = {**(context.default_map or {}), **settings}
    return path


def former_name(error: Exception) -> InputError | None:
    """The error for an option that is known under another name today; None for every other error."""
    flag, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if flag is None or context is None or not isinstance(context.obj, type):
        return None
    names = renamed(context.obj)
    today = names.get(flag.removeprefix("--").replace("-", "_"))
    if today is None:
        return None
    (declared,) = (one for one in declared_options(context.obj) if one.name == today)
    return InputError(f"{flag} is now {declared.flag}", context.command_path, "use the new name")


def _common(
    *,
    as_json: bool = typer.Option(
        False, "--json", help="Print one JSON object and nothing else on standard output."
    ),
    config: Path | None = typer.Option(
        None, metavar="FILE", is_eager=True, callback=_read_config,
        help="Options from a TOML file; the command line wins.",
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:  # fmt: skip
    """The options of every command, for its signature alone."""
