"""Progress bars, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bertmp.core.progress import ProgressCallback


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
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(message: str, completed: int | None = None, total: int | None = None, /) -> None:
            started = transfers and not console.is_terminal and message != bar.tasks[task].description
            if started or (log and completed is None):
                console.print(message, markup=False)
            if completed is not None or not log:
                bar.update(
                    task, description=message, completed=completed or 0, total=total or None, visible=True
                )

        yield show


class TrainingBar:
    """Shows a training run: steps, loss, examples per second, time left."""

    def __init__(self, bar: Any, total: int, done: int) -> None:
        self._bar = bar
        self._task = bar.add_task("training", total=total, completed=done, loss="-", rate="-")

    def step(self, step: int, loss: float, rate: float) -> None:
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=f"{rate:.1f}")

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)


@contextmanager
def training_bar(total: int, done: int) -> Iterator[TrainingBar]:
    """A bar over `total` steps, of which `done` are done already."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, soft_wrap=True)) as bar:
        yield TrainingBar(bar, total, done)
