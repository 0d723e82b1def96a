"""A label for each word of a sentence: named entities, parts of speech."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np
import torch

from bertmp.core.errors import InputError
from bertmp.data.conll import Sentences, read_sentences
from bertmp.data.readers import Columns
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.batch import Batch, pack
from bertmp.model.heads.token_classification import IGNORE_INDEX
from bertmp.training.tasks.classification import check_known, check_repeated, sort_labels
from bertmp.training.tasks.task import Encodings, Task
from bertmp.training.train_options import TrainOptions


class TokenEncodings(Encodings):
    """Tokenised sentences.

    `targets["labels"]` has one INT64 `[tokens]` array per sentence: a word's label at its first token,
    `IGNORE_INDEX` elsewhere.
    """

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        labels = np.concatenate([self.targets["labels"][row] for row in rows])
        return pack([self.rows[row] for row in rows], {"labels": torch.from_numpy(labels)})


def read_token_classification(settings: TrainOptions) -> Task:
    """Reads the data files.

    Raises:
        InputError: a single label, or evaluation data with a label that the training data lacks; see
            `read_sentences` for the rest.
    """
    names = _column_names(settings)
    train = read_sentences(settings.data, *names)
    counts = Counter(chain.from_iterable(train.labels))
    labels = sort_labels(counts)
    if len(labels) < 2:
        raise InputError(f"one label only: '{labels[0]}'", settings.data, "give words of at least two labels")
    check_repeated(labels, counts.total(), settings.data)
    test = read_sentences(settings.eval_data, *names) if settings.eval_data else None
    if test is not None:
        check_known(chain.from_iterable(test.labels), labels, test.source)
    return Task(labels, train, test, partial(encode, labels), [counts[label] for label in labels])


def _column_names(settings: TrainOptions) -> tuple[str, str]:
    """The columns of words and labels: `tokens` and `labels` by default."""
    standard = Columns()
    return (
        "tokens" if settings.text_column == standard.text else settings.text_column,
        "labels" if settings.label_column == standard.label else settings.label_column,
    )


def encode(labels: Sequence[str], sentences: Sentences, tokenizer: Tokenizer) -> TokenEncodings:
    """Token ids and targets of labelled sentences."""
    index = {label: number for number, label in enumerate(labels)}
    encoded = tokenizer.encode_words(sentences.words)
    targets = []
    for words, names in zip(encoded, sentences.labels, strict=True):
        row = np.full(len(words.row), IGNORE_INDEX, dtype=np.int64)
        for word, place in words.first.items():
            row[place] = index[names[word]]
        targets.append(row)
    return TokenEncodings([words.row for words in encoded], {"labels": targets})
