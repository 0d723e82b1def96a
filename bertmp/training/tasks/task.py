"""What a task brings to the trainer: labels for the head, examples to learn from and to be judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.model.batch import Batch, pack


class TrainingData(Protocol):
    """Examples as the loop reads them. Everything is a pure function of the arguments, in any process."""

    @property
    def truncated(self) -> int:
        """How many examples were cut to the maximum length."""

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
        targets: name → `[examples]` or `[examples, …]`, what the head's loss compares with.
    """

    rows: Sequence[Encoded]
    targets: Mapping[str, np.ndarray]

    @property
    def truncated(self) -> int:
        return sum(row.truncated for row in self.rows)

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
        labels: the classes' names in the order of the logits; None where the head has none.
        encode: makes the training and the evaluation examples.
        class_counts: training examples of each class, for balanced class weights; empty without classes.
        head: the head that is trained, where the task does not say it.
    """

    labels: tuple[str, ...] | None
    encode: Callable[[Tokenizer], tuple[TrainingData, TrainingData | None]]
    class_counts: Sequence[int] = field(default=())
    head: str | None = None
