"""A task's data: from files to token ids and targets, with the labels that connect them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bertmp.data.batches import Batch, pad
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.errors import InputError
from bertmp.tokenizer import Encoded, Tokenizer
from bertmp.training.settings import TrainSettings


@dataclass(frozen=True)
class Dataset:
    """Tokenised examples.

    Attributes:
        rows: token ids of each example.
        targets: INT64 `[examples]`, indices into the labels.
        truncated: how many examples were cut to the maximum length.
    """

    rows: Sequence[Encoded]
    targets: np.ndarray
    truncated: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    def batch(self, rows: np.ndarray) -> tuple[Batch, Tensor]:
        """The padded batch of some rows, and their targets, INT64 `[batch]`."""
        return pad([self.rows[row] for row in rows], self.pad_id), torch.from_numpy(self.targets[rows])


def read_classification(settings: TrainSettings) -> tuple[Examples, Examples | None, tuple[str, ...]]:
    """The training and evaluation examples and the labels in the order of the logits.

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
    if settings.eval_data is None:
        return train, None, labels
    test = read_examples(settings.eval_data, columns, need_labels=True)
    unknown = sorted(set(test.labels or ()) - set(labels))
    if unknown:
        raise InputError(
            f"the label '{unknown[0]}' never occurs in the training data",
            settings.eval_data,
            "add training examples of it or remove it",
        )
    if (test.pairs is None) != (train.pairs is None):
        raise InputError(
            "text pairs in one data file only", settings.eval_data, "give both files the same columns"
        )
    return train, test, labels


def sort_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels, by number where all are numbers, else by name."""
    distinct = set(labels)
    return tuple(
        sorted(distinct, key=int) if all(label.isdecimal() for label in distinct) else sorted(distinct)
    )


def encode(examples: Examples, labels: Sequence[str], tokenizer: Tokenizer) -> Dataset:
    """Token ids and targets of labelled examples."""
    rows = tokenizer.encode(examples.texts, examples.pairs)
    index = {label: number for number, label in enumerate(labels)}
    targets = np.array([index[label] for label in examples.labels or ()], dtype=np.int64)
    return Dataset(rows, targets, sum(row.truncated for row in rows), tokenizer.pad_id)
