"""Runs stages one after the other, with a progress bar each; an error of one does not end the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bertmp.core.errors import InputError, MissingComponent
from bertmp.export.parity.stage import NotRun, ParityInputs, Stage, StageOutput

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Ran:
    """A stage after its run.

    Attributes:
        name: the stage's name.
        answer: what it answered or why it did not run; None where it failed.
        failure: the line of the error that it ended with; empty where there was none.
        seconds: wall time, loading included.
    """

    name: str
    answer: StageOutput | NotRun | None
    failure: str
    seconds: float


def run_all(stages: Sequence[Stage], inputs: ParityInputs) -> dict[str, Ran]:
    """Runs every stage and returns what each answered, by name.

    Errors: InputError and MissingComponent of a stage pass, since the user can mend them; any other error
    becomes the stage's `failure`.
    """
    with _progress() as progress:
        return {stage.name: _run(stage, inputs, progress) for stage in stages}


def _run(stage: Stage, inputs: ParityInputs, progress: Progress) -> Ran:
    task = progress.add_task(stage.name, total=len(inputs.texts))
    started = time.monotonic()
    answer: StageOutput | NotRun | None = None
    failure = ""
    try:
        answer = stage.run(inputs, lambda texts: progress.advance(task, texts))
    except (InputError, MissingComponent, MemoryError):
        raise
    except Exception as error:  # whatever a runtime throws at a graph it cannot run
        failure = _line(error)
    if not isinstance(answer, StageOutput):
        progress.remove_task(task)
    return Ran(stage.name, answer, failure, time.monotonic() - started)


def _line(error: Exception) -> str:
    """The error in one line, not too long for a table."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}{'…' if len(words) > 300 else ''}".removesuffix(": ")


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} texts/s" if speed else "", style="dim")

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        console=console,
        disable=not console.is_terminal,
    )
