"""Classification of texts and pairs of texts that may have several labels, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.heads import MultiLabelClassifier
from bertmp.training.tasks.labelled import check_known, columns_of, read_evaluation, sort_labels
from bertmp.training.tasks.task import Encodings, Task
from bertmp.training.train_options import TrainOptions


def read_multi_label(settings: TrainOptions) -> Task:
    """Reads the data files; a text's labels are parted by `settings.label_separator` or given as a list.

    Errors: InputError where no text has a label, or where the evaluation data has one that the training
    data lacks; see `read_examples` for the rest.
    """
    columns = columns_of(settings)
    train = read_examples(settings.data, columns, need_labels=True)
    counts = Counter(chain.from_iterable(split_labels(train, columns)))
    if not counts:
        raise InputError("no text has a label", settings.data, "give some of the texts labels")
    labels = sort_labels(counts)
    test = read_evaluation(settings, train)
    if test:
        check_known(chain.from_iterable(split_labels(test, columns)), labels, test.source)
    return Task(
        labels,
        lambda tokenizer: (
            encode(train, columns, labels, tokenizer),
            encode(test, columns, labels, tokenizer) if test else None,
        ),
        [counts[label] for label in labels],
        MultiLabelClassifier.task,
    )


def split_labels(examples: Examples, columns: Columns) -> list[set[str]]:
    """The labels of each text."""
    return [
        {label.strip() for label in field.split(columns.separator) if label.strip()}
        for field in examples.labels or ()
    ]


def encode(examples: Examples, columns: Columns, labels: Sequence[str], tokenizer: Tokenizer) -> Encodings:
    """Token ids, and targets FP32 `[examples, labels]`: 1 where a text has a label."""
    index = {label: number for number, label in enumerate(labels)}
    targets = np.zeros((len(examples), len(labels)), dtype=np.float32)
    for row, found in enumerate(split_labels(examples, columns)):
        targets[row, [index[label] for label in found]] = 1.0
    return Encodings(tokenizer.encode(examples.texts, examples.pairs), {"labels": targets})
