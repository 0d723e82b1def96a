"""Single-label classification of texts and pairs of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.errors import InputError
from bertmp.tokenizer import Tokenizer
from bertmp.training.settings import TrainSettings
from bertmp.training.tasks.base import Encodings, Task


def read_classification(settings: TrainSettings) -> Task:
    """Reads the data files.

    Errors: InputError where there is one label only, or where the evaluation data has a label that the
    training data lacks; see `read_examples` for the rest.
    """
    columns = Columns(settings.text_column, settings.text_pair_column, settings.label_column)
    train = read_examples(settings.data, columns, need_labels=True)
    labels = sort_labels(train.labels or ())
    if len(labels) < 2:
        raise InputError(
            f"one label only: '{labels[0]}'", settings.data, "give examples of at least two labels"
        )
    test = read_evaluation(settings, columns, train)
    unknown = sorted(set(test.labels or ()) - set(labels)) if test else []
    if unknown:
        raise InputError(
            f"the label '{unknown[0]}' never occurs in the training data",
            settings.eval_data or "",
            "add training examples of it or remove it",
        )
    counts = Counter(train.labels)
    return Task(
        labels,
        lambda tokenizer: (
            encode(train, labels, tokenizer),
            encode(test, labels, tokenizer) if test else None,
        ),
        [counts[label] for label in labels],
    )


def read_evaluation(settings: TrainSettings, columns: Columns, train: Examples) -> Examples | None:
    """The evaluation examples, of the same shape as the training examples; None where none are given.

    Errors: InputError where one file has pairs of texts and the other has not.
    """
    if settings.eval_data is None:
        return None
    test = read_examples(settings.eval_data, columns, need_labels=True)
    if (test.pairs is None) != (train.pairs is None):
        raise InputError(
            "text pairs in one data file only", settings.eval_data, "give both files the same columns"
        )
    return test


def sort_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels, by number where all are numbers, else by name."""
    distinct = set(labels)
    return tuple(
        sorted(distinct, key=int) if all(label.isdecimal() for label in distinct) else sorted(distinct)
    )


def encode(examples: Examples, labels: Sequence[str], tokenizer: Tokenizer) -> Encodings:
    """Token ids and targets of labelled examples."""
    index = {label: number for number, label in enumerate(labels)}
    targets = np.array([index[label] for label in examples.labels or ()], dtype=np.int64)
    return Encodings(tokenizer.encode(examples.texts, examples.pairs), {"labels": targets})
