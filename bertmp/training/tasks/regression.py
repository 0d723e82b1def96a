"""A number for each text or pair of texts."""

from __future__ import annotations

import math

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.readers import Examples, read_examples
from bertmp.data.tokenizer import Tokenizer
from bertmp.training.tasks.labelled import columns_of, read_evaluation
from bertmp.training.tasks.task import Encodings, Task
from bertmp.training.train_options import TrainOptions


def read_regression(settings: TrainOptions) -> Task:
    """Reads the data files.

    Errors: InputError where a label is no finite number; see `read_examples` for the rest.
    """
    train = read_examples(settings.data, columns_of(settings), need_labels=True)
    test = read_evaluation(settings, train)
    truth, test_truth = numbers(train), numbers(test) if test else None

    def encode(tokenizer: Tokenizer) -> tuple[Encodings, Encodings | None]:
        return (
            _encodings(train, truth, tokenizer),
            _encodings(test, test_truth, tokenizer) if test and test_truth is not None else None,
        )

    return Task(None, encode)


def numbers(examples: Examples) -> np.ndarray:
    """The labels as numbers, FP32 `[examples]`.

    Errors: InputError for the first label that is none, with its line.
    """
    limit = float(np.finfo(np.float32).max)
    values = np.empty(len(examples), dtype=np.float32)
    for row, label in enumerate(examples.labels or ()):
        value = _number(label)
        if not abs(value) <= limit:
            raise InputError(
                f"the label '{label}' is no number",
                f"{examples.source}, line {examples.lines[row]}",
                "give each text a number, or train classification",
            )
        values[row] = value
    return values


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def _encodings(examples: Examples, truth: np.ndarray, tokenizer: Tokenizer) -> Encodings:
    return Encodings(tokenizer.encode(examples.texts, examples.pairs), {"labels": truth})
