"""A task as the trainer sees it: labels for the head, training and evaluation examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.model.packed import Batch, pack


class TrainingData(Protocol):
    """Examples as the loop reads them. Everything is a pure function of the arguments, in any process."""

    @property
    def truncated(self) -> int:
        """How many examples were cut to the maximum length."""

    @property
    def pairs(self) -> bool:
        """Whether the model that is trained takes pairs of texts."""

    def __len__(self) -> int:
        """How many examples there are."""

    def lengths(self, epoch: int) -> Sequence[int] | np.ndarray:
        """Tokens of each example in this epoch."""

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        """Some examples, packed, with their targets."""


@dataclass(frozen=True)
class Encodings:
    """Tokenised examples that are the same in every epoch.

    Attributes:
        rows: token ids of each example.
        targets: name → array `[examples, …]`, the targets of the head's loss.
    """

    rows: Sequence[Encoded]
    targets: Mapping[str, Any]

    @property
    def truncated(self) -> int:
        return sum(row.truncated for row in self.rows)

    @property
    def pairs(self) -> bool:
        """Whether the examples are pairs of texts: of such, only the second text has type ids of 1."""
        return any(len(row) and max(row.token_type_ids) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, epoch: int) -> Sequence[int]:
        return [len(row) for row in self.rows]

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        targets = {name: torch.from_numpy(values[rows]) for name, values in self.targets.items()}
        return pack([self.rows[row] for row in rows], targets)


@dataclass(frozen=True)
class Task:
    """A task's files, read and checked; tokenised once the checkpoint's tokenizer is known.

    Attributes:
        labels: the classes in the order of the logits; None for a head without classes.
        train, evaluation: the files' content; the evaluation's is None if there is no such file.
        encode_examples: tokenises the content of a file.
        class_counts: training examples per class, for balanced class weights; empty without classes.
        head: the head to train, if it is not the one that the task names.
    """

    labels: tuple[str, ...] | None
    train: Any
    evaluation: Any | None
    encode_examples: Callable[[Any, Tokenizer], TrainingData]
    class_counts: Sequence[int] = ()
    head: str | None = None

    def encode(self, tokenizer: Tokenizer) -> tuple[TrainingData, TrainingData | None]:
        """The training and the evaluation examples."""
        train = self.encode_examples(self.train, tokenizer)
        return train, None if self.evaluation is None else self.encode_examples(self.evaluation, tokenizer)
