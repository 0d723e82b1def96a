"""A stage of parity: a data file's examples in, logits out, or why it was skipped; and how stages are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.batches import close_batches, pad_batch
from bertmp.data.labels import match_labels
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.data.tokenizer import Encoded
from bertmp.export.bundle import BUILD_ENGINE, Bundle
from bertmp.export.consistency.check import Consistency
from bertmp.export.consistency.probe import Probe, probe_of
from bertmp.export.consistency.tolerance import FP32, Tolerance, low_tolerance
from bertmp.export.engine.engine_options import Profile, recorded_profiles

Advance = Callable[[int], None]
"""Called with the number of examples that were answered since the last call."""


@dataclass(frozen=True)
class ParityInputs:
    """The examples that every stage answers, in one order.

    Attributes:
        texts: as in the data file.
        pairs: the second text of each row, or None.
        labels: the row's true class index, or None where the file is unlabelled.
        encoded: the same examples as token ids.
        pad_id: id of the padding token.
        probe: the rows with which a stage's answers are compared with each other; None leaves that out.
        low_tolerance: by how much they may differ where a stage runs in the bundle's low precision.
        profiles: those of the bundle's engine; empty without one.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[int] | None
    encoded: Sequence[Encoded]
    pad_id: int = 0
    probe: Probe | None = None
    low_tolerance: Tolerance = FP32
    profiles: Sequence[Profile] = ()


@dataclass(frozen=True)
class StageOutput:
    """What a stage answered.

    Attributes:
        logits: FP32 `[examples, labels]`.
        probabilities: FP32 `[examples, labels]` of a served model, else None.
        answers: the class indices of a served model, else None.
        details: further facts for the report, plain JSON values (versions, protocols, providers).
        consistency: the stage's answers compared with each other; None where they were not.
    """

    logits: np.ndarray
    probabilities: np.ndarray | None = None
    answers: np.ndarray | None = None
    details: dict[str, object] = field(default_factory=dict)
    consistency: Consistency | None = None


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


@dataclass(frozen=True)
class ParityData:
    """A data file ready for the stages.

    Attributes:
        inputs: its examples, in the file's order.
        examples: the same as they were read, with the file and each one's line.
        classes: the bundle's labels, in the order of the logits.
        note: how the file's labels were matched with them, where they are not the same; usually empty.
    """

    inputs: ParityInputs
    examples: Examples
    classes: Sequence[str]
    note: str = ""


def read_inputs(
    bundle: Bundle,
    data: Path,
    columns: Columns | None = None,
    progress: ProgressCallback = null_progress,
) -> ParityData:
    """Reads `data`, with the bundle's tokenizer and its labels' order.

    Raises:
        InputError: a file that cannot be read (see `read_examples`), a bundle of another task than
            classification, or a label that the bundle does not know.
    """
    if bundle.task != "classification" or not bundle.labels:
        what = f"parity compares classification models, and this one's task is {bundle.task}"
        raise InputError(what, bundle.folder, "compare a classification model")
    examples = read_examples(data, columns, progress=progress)
    match = match_labels(examples.labels or (), bundle.labels)
    for line, label in zip(examples.lines, examples.labels or () if match is None else (), strict=False):
        if label not in bundle.labels:
            what = f"the model does not know the label '{label}'"
            todo = f"use one of {', '.join(bundle.labels)}"
            raise InputError(what, f"{examples.source}, line {line}", todo)
    labels = None
    if examples.labels is not None and match is not None:
        labels = [bundle.labels.index(match.classes[label]) for label in examples.labels]
    encoded = bundle.tokenizer.encode(examples.texts, examples.pairs)
    pad_id, names = bundle.tokenizer.pad_id, [f"line {line}" for line in examples.lines]
    probe = probe_of(encoded, names, pad_id, bundle.max_positions)
    built = bundle.manifest.stages.get(BUILD_ENGINE)
    profiles = () if built is None else recorded_profiles(built)
    rows = (examples.texts, examples.pairs, labels, encoded)
    inputs = ParityInputs(*rows, pad_id, probe, low_tolerance(bundle), profiles)
    return ParityData(inputs, examples, bundle.labels, match.note if match else "")


Feed = dict[str, np.ndarray]
Batches = Iterable[tuple[list[int], Feed]]


def batches(inputs: ParityInputs, size: int = BATCH_SIZE, spread: int = LENGTH_SPREAD) -> Batches:
    """The examples from short to long, at most `size` per batch, none padded by more than `spread` tokens.

    Yields:
        The rows of a batch, and the graph's inputs for them by name, INT64 `[batch, length]`.
    """
    for rows in close_batches([len(encoded) for encoded in inputs.encoded], size, spread):
        yield rows, pad_batch([inputs.encoded[row] for row in rows], inputs.pad_id)


def answer_all(
    inputs: ParityInputs,
    answer: Callable[[Feed], np.ndarray],
    advance: Advance,
    chosen: Batches | None = None,
) -> np.ndarray:
    """Runs `answer` batch by batch and puts its rows back into the file's order.

    Args:
        answer: the graph's inputs for a batch → logits, FP32 `[batch, labels]`.
        advance: called with the number of examples after every batch.
        chosen: the batches, those of `batches` where None; rows that only fill a batch come last in it.

    Returns:
        FP32 `[examples, labels]`.
    """
    logits: dict[int, np.ndarray] = {}
    for rows, feed in batches(inputs) if chosen is None else chosen:
        logits.update(zip(rows, np.asarray(answer(feed), np.float32)[: len(rows)], strict=True))
        advance(len(rows))
    return np.stack([logits[row] for row in range(len(inputs.encoded))])
