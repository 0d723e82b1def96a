"""A data file as the stages read it: token ids, class indices, and batches with little padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.io import sha256_file
from bertmp.data.batches import pad_batch
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.export.bundle import Bundle
from bertmp.export.parity.stage import ParityInputs

BATCH_SIZE = 16
LENGTH_SPREAD = 4
"""How many padding tokens an example may get: few, because ONNX Runtime's CPU provider is slow on padded
batches, but not none, so that the attention mask is part of what is compared."""


@dataclass(frozen=True)
class ParityData:
    """A data file ready for the stages.

    Attributes:
        inputs: its examples, in the file's order.
        source: the file.
        sha256: of the file's bytes.
        lines: the line of each example.
        classes: the bundle's labels, in the order of the logits.
    """

    inputs: ParityInputs
    source: Path
    sha256: str
    lines: Sequence[int]
    classes: Sequence[str]

    @property
    def truncated(self) -> int:
        """How many examples were truncated to the model's positions."""
        return sum(encoded.truncated for encoded in self.inputs.encoded)


def read_inputs(bundle: Bundle, data: Path, columns: Columns | None = None) -> ParityData:
    """Reads `data`, with the bundle's tokenizer and its labels' order.

    Raises:
        InputError: a file that cannot be read (see `read_examples`), a bundle of another task than
            classification, or a label that the bundle does not know.
    """
    if bundle.task != "classification" or not bundle.labels:
        raise InputError(
            f"parity compares classification models, and this one's task is {bundle.task}",
            bundle.folder,
            "compare a classification model",
        )
    examples = read_examples(data, columns)
    inputs = ParityInputs(
        texts=examples.texts,
        pairs=examples.pairs,
        labels=None if examples.labels is None else _class_indices(examples, bundle.labels),
        encoded=bundle.tokenizer.encode(examples.texts, examples.pairs),
        pad_id=bundle.tokenizer.pad_id,
    )
    return ParityData(inputs, examples.source, sha256_file(examples.source), examples.lines, bundle.labels)


def _class_indices(examples: Examples, known: Sequence[str]) -> list[int]:
    index_of = {label: index for index, label in enumerate(known)}
    for line, label in zip(examples.lines, examples.labels or (), strict=True):
        if label not in index_of:
            raise InputError(
                f"the model does not know the label '{label}'",
                f"{examples.source}, line {line}",
                f"use one of {', '.join(known)}",
            )
    return [index_of[label] for label in examples.labels or ()]


def batches(
    inputs: ParityInputs, size: int = BATCH_SIZE, spread: int = LENGTH_SPREAD
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """The examples from short to long, at most `size` per batch, none padded by more than `spread` tokens.

    Yields:
        The rows of a batch, and the graph's inputs for them by name, INT64 `[batch, length]`.
    """
    order = sorted(range(len(inputs.encoded)), key=lambda row: len(inputs.encoded[row]))
    start = 0
    while start < len(order):
        longest = len(inputs.encoded[order[start]]) + spread
        end = start + 1
        while end < min(start + size, len(order)) and len(inputs.encoded[order[end]]) <= longest:
            end += 1
        rows = order[start:end]
        yield rows, pad_batch([inputs.encoded[row] for row in rows], inputs.pad_id)
        start = end


def answer_all(
    inputs: ParityInputs,
    answer: Callable[[dict[str, np.ndarray]], np.ndarray],
    advance: Callable[[int], None],
) -> np.ndarray:
    """Runs `answer` batch by batch and puts its rows back into the file's order.

    Args:
        answer: the graph's inputs for a batch → logits, FP32 `[batch, labels]`.
        advance: called with the number of examples after every batch.

    Returns:
        FP32 `[examples, labels]`.
    """
    logits: dict[int, np.ndarray] = {}
    for rows, feed in batches(inputs):
        logits.update(zip(rows, np.asarray(answer(feed), np.float32), strict=True))
        advance(len(rows))
    return np.stack([logits[row] for row in range(len(inputs.encoded))])
