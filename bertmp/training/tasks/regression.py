"""Regression: a number for each text or text pair."""

from __future__ import annotations

import math

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.readers import Examples, read_examples
from bertmp.data.tokenizer import Tokenizer
from bertmp.training.tasks.classification import columns_of, read_evaluation
from bertmp.training.tasks.task import Encodings, Task
from bertmp.training.train_options import TrainOptions


def read_regression(settings: TrainOptions) -> Task:
    """Reads the data files.

    Raises:
        InputError: a label is not a finite number; see `read_examples` for the rest.
    """
    train = read_examples(settings.data, columns_of(settings), need_labels=True)
    test = read_evaluation(settings, train)
    values = {examples.source: numbers(examples) for examples in (train, test) if examples is not None}

    def encode(examples: Examples, tokenizer: Tokenizer) -> Encodings:
        encoded = tokenizer.encode(examples.texts, examples.pairs)
        return Encodings(encoded, {"labels": values[examples.source]})

    return Task(None, train, test, encode)


def numbers(examples: Examples) -> np.ndarray:
    """The labels as numbers, FP32 `[examples]`.

    Raises:
        InputError: a label is not a number; names the first one's line.
    """
    limit = float(np.finfo(np.float32).max)
    values = np.empty(len(examples), dtype=np.float32)
    for row, label in enumerate(examples.labels or ()):
        value = _number(label)
        if not abs(value) <= limit:
            raise InputError(
                f"the label '{label}' is not a number",
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
