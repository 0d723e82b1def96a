"""A stage of parity: examples in, logits out, or the reason why it was skipped; and how stages are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.progress import ProgressCallback
from bertmp.data.tokenizer import Encoded


@dataclass(frozen=True)
class ParityInputs:
    """The examples that every stage answers, in one order.

    Attributes:
        texts: as in the data file.
        pairs: the second text of each row, or None.
        labels: the row's true class index, or None where the file is unlabelled.
        encoded: the same examples as token ids.
        pad_id: id of the padding token.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[int] | None
    encoded: Sequence[Encoded]
    pad_id: int = 0


@dataclass(frozen=True)
class StageOutput:
    """What a stage answered.

    Attributes:
        logits: FP32 `[examples, labels]`.
        probabilities: FP32 `[examples, labels]` of a served model, else None.
        answers: the class indices of a served model, else None.
        details: further facts for the report, plain JSON values (versions, protocols, providers).
    """

    logits: np.ndarray
    probabilities: np.ndarray | None = None
    answers: np.ndarray | None = None
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A stage that could not run here, and why; `verification` holds what was verified without running it."""

    reason: str
    verification: dict[str, object] = field(default_factory=dict)


class Stage(Protocol):
    """One stage of the chain."""

    @property
    def name(self) -> str:
        """The stage's name in reports, e.g. `onnx-fp16`."""

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples, in their order; calls `advance(n)` after every n examples."""


@dataclass(frozen=True)
class StageRun:
    """A stage after its run.

    Attributes:
        name: the stage's name.
        answer: what it answered or why it did not run; None where it failed.
        failure: the line of the error that it ended with; empty where there was none.
        seconds: wall time, loading included.
    """

    name: str
    answer: StageOutput | Skipped | None
    failure: str
    seconds: float


def run_all(stages: Sequence[Stage], inputs: ParityInputs, progress: ProgressCallback) -> dict[str, StageRun]:
    """Runs every stage and returns what each answered, by name.

    Raises:
        InputError, MissingComponent: of a stage, since the user can fix them; any other error becomes the
            stage's `failure`.
    """
    return {stage.name: _run(stage, inputs, progress) for stage in stages}


def _run(stage: Stage, inputs: ParityInputs, progress: ProgressCallback) -> StageRun:
    started, answered = time.monotonic(), 0

    def advance(examples: int) -> None:
        nonlocal answered
        answered += examples
        progress(stage.name, answered, len(inputs.texts))

    answer: StageOutput | Skipped | None = None
    failure = ""
    try:
        answer = stage.run(inputs, advance)
    except (InputError, MissingComponent, MemoryError):
        raise
    except Exception as error:  # whatever a runtime throws at a graph it cannot run
        failure = _line(error)
    return StageRun(stage.name, answer, failure, time.monotonic() - started)


def _line(error: Exception) -> str:
    """The error in one line, not too long for a table."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}{'…' if len(words) > 300 else ''}".removesuffix(": ")
