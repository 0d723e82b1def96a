"""Progress bars, on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bertmp.core.progress import ProgressCallback

if TYPE_CHECKING:
    from rich.table import Table


@contextmanager
def progress_bar(*, log: bool = True, transfers: bool = False) -> Iterator[ProgressCallback]:
    """A callback that shows progress on standard error: lines, and one bar where that is a terminal.

    Args:
        log: whether messages without a count stay as lines; otherwise each replaces the one before.
        transfers: whether counts are bytes; each transfer is then a line where there is no terminal.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    counts = (
        (DownloadColumn(), TransferSpeedColumn())
        if transfers
        else (MofNCompleteColumn(), TimeRemainingColumn())
    )
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counts)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=None)

    def show(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        begins = transfers and not console.is_terminal and message != bar.tasks[task].description
        if begins or (log and completed is None):
            console.print(message, markup=False)
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

    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        show_header=any((*columns, *numbers)),
    )  # fmt: skip
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    return table
