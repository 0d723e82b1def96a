"""Single-label classification of texts and pairs of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.readers import Examples, read_examples
from bertmp.data.tokenizer import Tokenizer
from bertmp.training.tasks.labelled import (
    check_known,
    check_repeated,
    columns_of,
    read_evaluation,
    sort_labels,
)
from bertmp.training.tasks.task import Encodings, Task
from bertmp.training.train_options import TrainOptions


def read_single_label(settings: TrainOptions) -> Task:
    """Reads the data files.

    Errors: InputError where there is one label only, or where the evaluation data has a label that the
    training data lacks; see `read_examples` for the rest.
    """
    train = read_examples(settings.data, columns_of(settings), need_labels=True)
    labels = sort_labels(train.labels or ())
    if len(labels) < 2:
        raise InputError(
            f"one label only: '{labels[0]}'", settings.data, "give examples of at least two labels"
        )
    check_repeated(labels, len(train), settings.data)
    test = read_evaluation(settings, train)
    if test:
        check_known(test.labels or (), labels, test.source)
    counts = Counter(train.labels)
    return Task(
        labels,
        lambda tokenizer: (
            encode(train, labels, tokenizer),
            encode(test, labels, tokenizer) if test else None,
        ),
        [counts[label] for label in labels],
    )


def encode(examples: Examples, labels: Sequence[str], tokenizer: Tokenizer) -> Encodings:
    """Token ids and targets of labelled examples."""
    index = {label: number for number, label in enumerate(labels)}
    targets = np.array([index[label] for label in examples.labels or ()], dtype=np.int64)
    return Encodings(tokenizer.encode(examples.texts, examples.pairs), {"labels": targets})
