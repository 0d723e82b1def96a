"""Progress bars, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingBar:
    """Shows a training run: steps, loss, examples per second, time left."""

    def __init__(self, bar: Progress, total: int, done: int) -> None:
        self._bar = bar
        self._task = bar.add_task("training", total=total, completed=done, loss="-", rate="-")

    def step(self, step: int, loss: float, rate: float) -> None:
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=f"{rate:.1f}")

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False)


@contextmanager
def training_bar(total: int, done: int) -> Iterator[TrainingBar]:
    """A bar over `total` steps, of which `done` are done already."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, soft_wrap=True)) as bar:
        yield TrainingBar(bar, total, done)
