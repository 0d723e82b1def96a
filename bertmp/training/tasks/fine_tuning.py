"""Fine-tuning: labels of texts, of text pairs and of words, and a number for each text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from bertmp.core.errors import InputError
from bertmp.data.labels import match_labels, numbers_of, split_labels
from bertmp.data.readers import (
    Columns,
    Examples,
    read_examples,
)
from bertmp.data.sentences import Sentences, read_sentences
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.config import BertConfig, unnamed_labels
from bertmp.model.heads import MultiLabelClassifier
from bertmp.model.heads.fine_tuning import IGNORE_INDEX
from bertmp.model.packed import Batch, pack
from bertmp.training.tasks.task import Encodings, Task
from bertmp.training.train_options import TrainOptions

_NO_NUMBER = "give each text a number, or train classification"

MANY_LABELS = 100
"""More labels than this, most of them used once, are taken for a wrong column."""


def read_classification(settings: TrainOptions) -> Task:
    """Reads texts or text pairs with one label each or, with `--multi-label`, any number.

    Raises:
        InputError: too few labels, or evaluation data with a label that the training data lacks; see
            `read_examples` for the rest.
    """
    columns = _columns_of(settings)
    train, test = _read_files(settings, columns)
    counts = Counter(chain.from_iterable(split_labels(train, columns.separator)))
    if not settings.multi_label:
        labels = _classes(counts, "examples", settings.data)
    elif not (labels := _sorted(counts)):
        raise InputError("no text has a label", settings.data, "give some of the texts labels")
    tested = set(chain.from_iterable(split_labels(test, columns.separator))) if test is not None else set()
    labels, index = _classes_of_checkpoint(settings, labels, tested, test)

    def encode(examples: Examples, tokenizer: Tokenizer) -> Encodings:
        found = split_labels(examples, columns.separator)
        if settings.multi_label:  # FP32 [examples, labels]: 1 where a text has a label
            targets = np.zeros((len(examples), len(labels)), dtype=np.float32)
            for row, names in enumerate(found):
                targets[row, [index[label] for label in names]] = 1.0
        else:  # INT64 [examples]
            targets = np.array([index[label] for (label,) in found], dtype=np.int64)
        return Encodings(tokenizer.encode(examples.texts, examples.pairs), {"labels": targets})

    head = MultiLabelClassifier.task if settings.multi_label else None
    return Task(labels, train, test, encode, _class_counts(counts, index, labels), head)


def read_regression(settings: TrainOptions) -> Task:
    """Reads texts or text pairs with a number each.

    Raises:
        InputError: a label is not a finite number; see `read_examples` for the rest.
    """
    train, test = _read_files(settings, _columns_of(settings))
    values = {
        examples.source: numbers_of(examples, _NO_NUMBER)
        for examples in (train, test)
        if examples is not None
    }

    def encode(examples: Examples, tokenizer: Tokenizer) -> Encodings:
        encoded = tokenizer.encode(examples.texts, examples.pairs)
        return Encodings(encoded, {"labels": values[examples.source]})

    return Task(None, train, test, encode)


class TokenEncodings(Encodings):
    """Tokenised sentences.

    `targets["labels"]` has one INT64 `[tokens]` array per sentence: a word's label at its first token,
    `IGNORE_INDEX` elsewhere.
    """

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        labels = np.concatenate([self.targets["labels"][row] for row in rows])
        return pack([self.rows[row] for row in rows], {"labels": torch.from_numpy(labels)})


def read_token_classification(settings: TrainOptions) -> Task:
    """Reads sentences with a label for each word: named entities, parts of speech.

    Raises:
        InputError: a single label, or evaluation data with a label that the training data lacks; see
            `read_sentences` for the rest.
    """
    words = "tokens" if settings.text_column == Columns.text else settings.text_column
    names = "labels" if settings.label_column == Columns.label else settings.label_column
    read = partial(
        read_sentences, words=words, labels=names, encoding=settings.encoding, progress=settings.progress
    )
    train = read(settings.data)
    counts = Counter(chain.from_iterable(train.labels))
    labels = _classes(counts, "words", settings.data)
    test = read(settings.eval_data) if settings.eval_data else None
    tested = set(chain.from_iterable(test.labels)) if test is not None else set()
    labels, index = _classes_of_checkpoint(settings, labels, tested, test)

    def encode(sentences: Sentences, tokenizer: Tokenizer) -> TokenEncodings:
        encoded = tokenizer.encode_words(sentences.words)
        targets = [np.full(len(words), IGNORE_INDEX, dtype=np.int64) for words in encoded]
        for row, words, names in zip(targets, encoded, sentences.labels, strict=True):
            for word, place in words.first.items():
                row[place] = index[names[word]]
        return TokenEncodings(encoded, {"labels": targets})

    return Task(labels, train, test, encode, _class_counts(counts, index, labels))


def _columns_of(settings: TrainOptions) -> Columns:
    """The columns that the options name."""
    separator = settings.label_separator if settings.multi_label else ""
    return settings.columns(settings.label_column, separator)


def _read_files(settings: TrainOptions, columns: Columns) -> tuple[Examples, Examples | None]:
    """The training examples, and the evaluation's if the options name any.

    Raises:
        InputError: one file has text pairs and the other has not.
    """
    train = read_examples(settings.data, columns, True, settings.progress)
    if settings.eval_data is None:
        return train, None
    test = read_examples(settings.eval_data, columns, True, settings.progress)
    if (test.pairs is None) != (train.pairs is None):
        todo = "give both files the same columns"
        raise InputError("text pairs in one data file only", settings.eval_data, todo)
    return train, test


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels, by number where all are numbers, else by name."""
    return tuple(sorted(labels, key=int if all(label.isdecimal() for label in labels) else None))


def _classes(counts: Counter[str], what: str, source: Path) -> tuple[str, ...]:
    """The labels that occur, in order; rejects columns that cannot be classes, such as numbers or texts.

    Raises:
        InputError: there is one label only, or there are many and most occur once.
    """
    labels = _sorted(counts)
    if len(labels) < 2:
        raise InputError(f"one label only: '{labels[0]}'", source, f"give {what} of at least two labels")
    uses = counts.total()
    if len(labels) > MANY_LABELS and len(labels) > uses / 2:
        shown = labels[0] if len(labels[0]) <= 30 else f"{labels[0][:30]}…"
        what = f"{len(labels)} different labels in {uses} places, such as '{shown}': too many to learn"
        todo = "check which column is the label's; numbers are for 'bertmp train regression'"
        raise InputError(what, source, todo)
    return labels


def _classes_of_checkpoint(
    settings: TrainOptions, labels: tuple[str, ...], tested: set[str], test: Examples | Sentences | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes to train, and each label's place among them.

    A classifier that is trained further keeps its classes and their order, where the data's labels are among
    them by name or by number.

    Raises:
        InputError: the evaluation data has a label that neither the training data nor the checkpoint has.
    """
    known = _named_classes(settings.model)
    match = match_labels({*labels, *tested}, known) if known else None
    if match is not None:
        if match.note:
            settings.progress(match.note)
        return known, {label: known.index(name) for label, name in match.classes.items()}
    if test is not None and (unknown := sorted(tested - set(labels))):
        what = f"the label '{unknown[0]}' never occurs in the training data"
        raise InputError(what, test.source, "add training examples of it or remove it")
    return labels, {label: number for number, label in enumerate(labels)}


def _named_classes(model: Path) -> tuple[str, ...]:
    """The classes that a checkpoint names; none for one without a classifier, or with unnamed classes."""
    if not (model / "config.json").is_file():
        return ()
    classes = BertConfig.load(model).labels
    return () if classes == unnamed_labels(len(classes)) else classes


def _class_counts(counts: Counter[str], index: dict[str, int], labels: tuple[str, ...]) -> list[int]:
    """How many training examples each class has."""
    found = [0] * len(labels)
    for label, count in counts.items():
        found[index[label]] += count
    return found
