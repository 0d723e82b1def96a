"""Writes the reference page of all commands and their options: `python -m bertmp.cli.reference FILE`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_type_hints

from bertmp.cli.app import COMMANDS
from bertmp.cli.options import describe
from bertmp.core.io import write_text
from bertmp.core.options import DeclaredOption, declared_options

HEAD = """# Commands and options

Generated from the options' declarations by `python -m bertmp.cli.reference docs/reference/options.md`.

Every command also takes `--json` (one JSON object on standard output), `--config FILE` (options from a TOML
file, named as below without the dashes in front and with `_` for `-`; the command line wins) and `--debug`
(the traceback of an error).
"""


def reference_page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(line for command in COMMANDS for line in _command(*command))])


def _command(name: str, function: Callable[..., Any], example: str) -> Iterator[str]:
    yield from (f"## bertmp {name}\n", f"{function.__doc__}\n", f"    {example}\n")
    options = get_type_hints(function)["options"]
    shown = [one for one in declared_options(options) if one.info.on_command_line]
    panels: dict[str, list[DeclaredOption]] = {"Arguments": [], "Options": []}
    for one in shown:
        panel = "Arguments" if one.info.positional else one.info.group or "Options"
        panels.setdefault(panel, []).append(one)
    for panel, members in panels.items():
        if members:
            yield f"**{panel}**\n\n| Option | Default | Meaning |\n|---|---|---|"
            yield from map(_row, members)
            yield ""


def _row(declared: DeclaredOption) -> str:
    values = declared.info.metavar or "|".join(declared.info.choices) or _KINDS.get(declared.kind, "TEXT")
    takes_value = declared.kind is not bool and not declared.info.positional
    spelling = f"{declared.flag} {values}" if takes_value else declared.flag
    if declared.repeated and declared.info.positional:
        spelling += "..."
    former_flag = f"--{declared.info.formerly.replace('_', '-')}"
    renamed = declared.info.formerly and former_flag != declared.flag
    former = f" Formerly `{former_flag}`." if renamed else ""
    cells = (f"`{spelling}`", _default(declared), f"{describe(declared)}{former}")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(declared: DeclaredOption) -> str:
    if declared.default is MISSING:
        return "required"
    if declared.default in (None, "", ()) or declared.default is False:
        return ""
    return f"`{str(declared.default).lower() if declared.kind is bool else declared.default}`"


_KINDS = {int: "N", float: "X", Path: "PATH"}


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), reference_page())
