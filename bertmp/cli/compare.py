"""The command `compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult, new_table
from bertmp.export.parity.compare_options import CompareOptions

if TYPE_CHECKING:
    from bertmp.export.parity.compare import Change, ReportComparison


def compare(options: CompareOptions) -> CommandResult:
    """Compare two parity reports, regressions first; exit 1 if something is worse."""
    result = bertmp.compare(options)
    return CommandResult(
        result.to_json(), lambda console: _show(console, result), exit_code=1 if result.worse else 0
    )


def _show(console: Any, result: ReportComparison) -> None:
    from rich.markup import escape

    number = len(result.regressions)
    found = f"[red]worse[/]: {number} regression{'s'[: number > 1]}" if number else "[green]not worse[/]"
    console.print(f"{found}; parity {result.before.verdict} before, {result.after.verdict} after")
    for one in result.regressions:
        console.print(escape(one.sentence))
    for note in result.notes:
        console.print(escape(f"note: {note}"))
    # Regressions first; the verdict of the whole stands in the first line.
    figures = sorted((one for one in result.figures if one.stage), key=lambda one: not one.worse)
    rows = [(one.stage, one.name, *_cells(one)) for one in figures if one.worse or one.before != one.after]
    if rows:
        console.print(new_table(rows, ("stage", "figure"), ("before", "after", "")))
    console.print(f"{len(figures) - len(rows)} of {len(figures)} figures are equal; --json has all of them")
    for title, head in (("before", result.before), ("after", result.after)):
        console.print(escape(f"{title}: {head.file} of {head.created}"))


def _cells(figure: Change) -> tuple[str, str, str]:
    return _text(figure.before), _text(figure.after), "[red]worse[/]" if figure.worse else ""


def _text(value: float | bool | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:.4g}"
