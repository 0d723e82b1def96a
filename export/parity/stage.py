"""A stage of parity: a data file's examples in, logits out, or why it was skipped; and how stages are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.progress import ProgressCallback
from bertmp.data.batches import close_batches, pad_batch
from bertmp.data.tokenizer import Encoded
from bertmp.export.consistency.check import Consistency
from bertmp.export.consistency.probe import Probe
from bertmp.export.consistency.tolerance import FP32, Tolerance
from bertmp.export.engine.engine_options import Profile
from bertmp.export.parity.tasks import VIEWS, TaskView, Units, gather

Advance = Callable[[int], None]
"""Called with the number of examples that were answered since the last call."""


@dataclass(frozen=True)
class ParityInputs:
    """The examples that every stage answers, in one order.

    Attributes:
        texts: as in the data file.
        pairs: the second text of each row, or None.
        truth: what is right of each unit: its class INT64 `[units]` (`UNKNOWN` where nobody says), its labels
            FP32 `[units, labels]`, or its number FP32 `[units]`; None where the file is unlabelled.
        encoded: the same examples as token ids.
        pad_id: id of the padding token.
        probe: the rows with which a stage's answers are compared with each other; None leaves that out.
        low_tolerance: by how much they may differ where a stage runs in the bundle's low precision.
        profiles: those of the bundle's engine; empty without one.
        view: how the task's answers are compared.
        units: what gets an answer; None for one unit per example.
        files: SHA-256 of the bundle's files, by the names that they have where they are served.
        bundle: the bundle's folder; None for inputs that were made up.
        arranged: the batches to ask, by row; empty where any will do. A row without tokens is all padding
            and never alone in its batch.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    truth: np.ndarray | None
    encoded: Sequence[Encoded]
    pad_id: int = 0
    probe: Probe | None = None
    low_tolerance: Tolerance = FP32
    profiles: Sequence[Profile] = ()
    view: TaskView = VIEWS["classification"]
    units: Units | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    bundle: Path | None = None
    arranged: Sequence[Sequence[int]] = ()

    @cached_property
    def all_units(self) -> Units:
        """The units, one per example where nothing else is said."""
        return self.units if self.units is not None else Units(np.arange(len(self.encoded)))


@dataclass(frozen=True)
class StageOutput:
    """What a stage answered.

    Attributes:
        logits: FP32 `[units, labels]`, or the numbers of a head that has no labels, FP32 `[units, width]`.
        probabilities: FP32 `[units, labels]` of a served model, else None.
        answers: the class indices of a served model, else None.
        others: further outputs by name, FP32 `[examples, width]`.
        other_files: files of a served model that are not the bundle's; None where nothing is known of them.
        answers_differ: what first differs in a served model's answers from those of the bundle's FP32 graph;
            empty where nothing does, None where they were not compared.
        details: further facts for the report, plain JSON values (versions, protocols, providers).
        consistency: the stage's answers compared with each other; None where they were not.
    """

    logits: np.ndarray
    probabilities: np.ndarray | None = None
    answers: np.ndarray | None = None
    details: dict[str, object] = field(default_factory=dict)
    consistency: Consistency | None = None
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    other_files: tuple[str, ...] | None = None
    answers_differ: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A stage that could not run here, and why; `verification` holds what was verified without running it."""

    reason: str
    verification: dict[str, object] = field(default_factory=dict)


class StageInterrupted(InputError):
    """A server stopped answering in the middle of a stage; raised once the other stages are reported."""


class Stage(Protocol):
    """One stage of the chain."""

    @property
    def name(self) -> str:
        """The stage's name in reports, e.g. `onnx-fp16`."""

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples, in their order; calls `advance(n)` after every n examples."""


@runtime_checkable
class EmptyTexts(Protocol):
    """A stage that takes texts and can say what it does with an empty one."""

    def answered_empty(self, texts: Sequence[str]) -> Sequence[str]:
        """Those of the texts, all of them empty or blank, that it answers where it should refuse them."""


@dataclass(frozen=True)
class StageRun:
    """A stage after its run.

    Attributes:
        name: the stage's name.
        answer: what it answered or why it did not run; None where it failed.
        failure: the line of the error that it ended with; empty where there was none.
        seconds: wall time, loading included.
        interruption: the error that the command ends with, once the report is written.
    """

    name: str
    answer: StageOutput | Skipped | None
    failure: str
    seconds: float
    interruption: StageInterrupted | None = None


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

    answer, failure, interruption = None, "", None
    try:
        answer = stage.run(inputs, advance)
    except StageInterrupted as error:
        interruption = error
        failure = f"{error.what} after {answered} of {len(inputs.texts)} texts"
    except (InputError, MissingComponent, MemoryError):
        raise
    except Exception as error:  # whatever a runtime throws at a graph it cannot run
        words = " ".join(str(error).split())
        shortened = f"{words[:300]}{'…' if len(words) > 300 else ''}"  # not too long for a table
        failure = f"{type(error).__name__}: {shortened}".removesuffix(": ")
    return StageRun(stage.name, answer, failure, time.monotonic() - started, interruption)


BATCH_SIZE = 16
LENGTH_SPREAD = 4
"""How many padding tokens an example may get: few, because ONNX Runtime's CPU provider is slow on padded
batches, but not none, so that the attention mask is part of what is compared."""


Feed = dict[str, np.ndarray]
Batches = Iterable[tuple[list[int], Feed]]


def batches(inputs: ParityInputs, size: int = BATCH_SIZE, spread: int = LENGTH_SPREAD) -> Batches:
    """The examples from short to long, at most `size` per batch, none padded by more than `spread` tokens.

    Where the inputs are arranged, their own batches.

    Yields:
        The rows of a batch, and the graph's inputs for them by name, INT64 `[batch, length]`.
    """
    lengths = [len(encoded) for encoded in inputs.encoded]
    for rows in inputs.arranged or close_batches(lengths, size, spread):
        yield list(rows), pad_batch([inputs.encoded[row] for row in rows], inputs.pad_id)


def answer_all(
    inputs: ParityInputs,
    answer: Callable[[Feed], Mapping[str, np.ndarray]],
    advance: Advance,
    chosen: Batches | None = None,
) -> StageOutput:
    """Runs `answer` batch by batch and puts what it says of the units into the file's order.

    Args:
        answer: the graph's inputs for a batch → its outputs by name, FP32 `[batch, …]`.
        advance: called with the number of examples after every batch.
        chosen: the batches, those of `batches` where None; rows that only fill a batch come last in it.
    """
    view, units, examples = inputs.view, inputs.all_units, len(inputs.encoded)
    starts = units.starts(examples)
    found = np.zeros((0, 0), np.float32)
    others: dict[str, np.ndarray] = {}
    for rows, feed in batches(inputs) if chosen is None else chosen:
        outputs = answer(feed)
        numbers = np.asarray(outputs[view.output], np.float32)
        if not len(found):
            found = np.zeros((int(starts[-1]), numbers.shape[-1]), np.float32)
        for row, values in zip(rows, gather(numbers, rows, units, starts), strict=True):
            found[starts[row] : starts[row + 1]] = values
        for name in view.others:
            if name in outputs:
                values = np.asarray(outputs[name], np.float32)[: len(rows)]
                others.setdefault(name, np.zeros((examples, *values.shape[1:]), np.float32))[rows] = values
        advance(len(rows))
    return StageOutput(found, others=others)
