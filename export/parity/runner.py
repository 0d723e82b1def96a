"""Runs stages one after the other, reporting progress; an error of one does not end the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.progress import ProgressCallback
from bertmp.export.parity.stage import NotRun, ParityInputs, Stage, StageOutput


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


def run_all(stages: Sequence[Stage], inputs: ParityInputs, progress: ProgressCallback) -> dict[str, Ran]:
    """Runs every stage and returns what each answered, by name.

    Raises:
        InputError, MissingComponent: of a stage, since the user can fix them; any other error becomes the
            stage's `failure`.
    """
    return {stage.name: _run(stage, inputs, progress) for stage in stages}


def _run(stage: Stage, inputs: ParityInputs, progress: ProgressCallback) -> Ran:
    started, answered = time.monotonic(), 0

    def advance(examples: int) -> None:
        nonlocal answered
        answered += examples
        progress(stage.name, answered, len(inputs.texts))

    answer: StageOutput | NotRun | None = None
    failure = ""
    try:
        answer = stage.run(inputs, advance)
    except (InputError, MissingComponent, MemoryError):
        raise
    except Exception as error:  # whatever a runtime throws at a graph it cannot run
        failure = _line(error)
    return Ran(stage.name, answer, failure, time.monotonic() - started)


def _line(error: Exception) -> str:
    """The error in one line, not too long for a table."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}{'…' if len(words) > 300 else ''}".removesuffix(": ")
