"""Classification of texts and text pairs, with one label each or, with `--multi-label`, any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.heads import MultiLabelClassifier
from bertmp.training.tasks.task import Encodings, Task
from bertmp.training.train_options import TrainOptions

MANY_LABELS = 100
"""More labels than this, most of them used once, are taken for a wrong column."""


def read_classification(settings: TrainOptions) -> Task:
    """Reads the data files.

    Raises:
        InputError: too few labels, or evaluation data with a label that the training data lacks; see
            `read_examples` for the rest.
    """
    columns = columns_of(settings)
    train = read_examples(settings.data, columns, need_labels=True)
    counts = Counter(chain.from_iterable(split_labels(train, columns)))
    labels = sort_labels(counts)
    if settings.multi_label:
        if not labels:
            raise InputError("no text has a label", settings.data, "give some of the texts labels")
    elif len(labels) < 2:
        raise InputError(
            f"one label only: '{labels[0]}'", settings.data, "give examples of at least two labels"
        )
    else:
        check_repeated(labels, len(train), settings.data)
    test = read_evaluation(settings, train)
    if test is not None:
        check_known(chain.from_iterable(split_labels(test, columns)), labels, test.source)

    def encode(examples: Examples, tokenizer: Tokenizer) -> Encodings:
        found = split_labels(examples, columns)
        index = {label: number for number, label in enumerate(labels)}
        if settings.multi_label:  # FP32 [examples, labels]: 1 where a text has a label
            targets = np.zeros((len(examples), len(labels)), dtype=np.float32)
            for row, names in enumerate(found):
                targets[row, [index[label] for label in names]] = 1.0
        else:  # INT64 [examples]
            targets = np.array([index[label] for (label,) in found], dtype=np.int64)
        return Encodings(tokenizer.encode(examples.texts, examples.pairs), {"labels": targets})

    head = MultiLabelClassifier.task if settings.multi_label else None
    return Task(labels, train, test, encode, [counts[label] for label in labels], head)


def split_labels(examples: Examples, columns: Columns) -> list[set[str]]:
    """The labels of each example: its label, or those that `columns.separator` separates."""
    fields = examples.labels or ()
    if not columns.separator:
        return [{field} for field in fields]
    return [{label.strip() for label in field.split(columns.separator) if label.strip()} for field in fields]


def columns_of(settings: TrainOptions) -> Columns:
    """The columns that the options name."""
    return Columns(
        settings.text_column,
        settings.text_pair_column,
        settings.label_column,
        settings.label_separator if settings.multi_label else "",
    )


def read_evaluation(settings: TrainOptions, train: Examples) -> Examples | None:
    """The evaluation examples; None if the options name none.

    Raises:
        InputError: one file has text pairs and the other has not.
    """
    if settings.eval_data is None:
        return None
    test = read_examples(settings.eval_data, columns_of(settings), need_labels=True)
    if (test.pairs is None) != (train.pairs is None):
        raise InputError(
            "text pairs in one data file only", settings.eval_data, "give both files the same columns"
        )
    return test


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels, by number where all are numbers, else by name."""
    distinct = set(labels)
    return tuple(
        sorted(distinct, key=int) if all(label.isdecimal() for label in distinct) else sorted(distinct)
    )


def check_repeated(labels: Sequence[str], uses: int, source: Path) -> None:
    """Rejects columns that cannot be classes, such as numbers for regression, or texts.

    Args:
        labels: the distinct labels.
        uses: how often labels occur in all.

    Raises:
        InputError: there are many labels and most occur once.
    """
    if len(labels) > MANY_LABELS and len(labels) > uses / 2:
        shown = labels[0] if len(labels[0]) <= 30 else f"{labels[0][:30]}…"
        raise InputError(
            f"{len(labels)} different labels in {uses} places, such as '{shown}': too many to learn",
            source,
            "check which column is the label's; numbers are for 'bertmp train regression'",
        )


def check_known(found: Iterable[str], known: Iterable[str], source: Path) -> None:
    """Checks that the training data has every label of the evaluation data.

    Raises:
        InputError: it lacks one.
    """
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise InputError(
            f"the label '{unknown[0]}' never occurs in the training data",
            source,
            "add training examples of it or remove it",
        )
