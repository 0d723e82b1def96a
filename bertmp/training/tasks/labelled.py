"""What the tasks with labelled texts share: columns, evaluation data, the labels and their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.training.train_options import TrainOptions

MANY = 100
"""Labels that no file of so few examples has by good intent."""


def columns_of(settings: TrainOptions) -> Columns:
    """The columns that the settings name."""
    return Columns(
        settings.text_column,
        settings.text_pair_column,
        settings.label_column,
        settings.label_separator if settings.multi_label else "",
    )


def read_evaluation(settings: TrainOptions, train: Examples) -> Examples | None:
    """The evaluation examples, of the same shape as the training examples; None where none are given.

    Errors: InputError where one file has pairs of texts and the other has not.
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
    """Refuses what cannot be classes: numbers of a regression, or texts where labels should be.

    Args:
        labels: the distinct labels.
        uses: how often labels occur in all.

    Errors: InputError where there are many labels and most occur once.
    """
    if len(labels) > MANY and len(labels) > uses / 2:
        shown = labels[0] if len(labels[0]) <= 30 else f"{labels[0][:30]}…"
        raise InputError(
            f"{len(labels)} different labels in {uses} places, such as '{shown}': too many to learn",
            source,
            "check which column is the label's; numbers are for 'bertmp train regression'",
        )


def check_known(found: Iterable[str], known: Iterable[str], source: Path) -> None:
    """Errors: InputError where evaluation data has a label that training never saw."""
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise InputError(
            f"the label '{unknown[0]}' never occurs in the training data",
            source,
            "add training examples of it or remove it",
        )
