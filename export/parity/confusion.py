"""Which label is answered where another is right: the reference beside the last stage that was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertmp.export.parity.stage import ParityInputs, StageOutput
from bertmp.export.parity.stage_metrics import answers_of
from bertmp.export.parity.tasks import UNKNOWN

MOST_CLASSES = 20
"""With more classes there is no matrix; the most confused pairs stand for it."""
MOST_PAIRS = 30

_TASKS = ("classification", "token-classification")


@dataclass(frozen=True)
class ConfusedPair:
    """A wrong label and how often it was answered.

    Attributes:
        right, answer: the labels.
        reference, stage: how many units each of the two answered so.
    """

    right: str
    answer: str
    reference: int
    stage: int


@dataclass(frozen=True)
class Confusion:
    """Right labels against answers, of the reference and of one stage.

    Attributes:
        reference, stage: whose answers they are.
        classes: in the order of the logits.
        before, after: how many units of each class (rows) got each answer (columns), of the reference and of
            the stage, INT64 `[classes, classes]`.
    """

    reference: str
    stage: str
    classes: tuple[str, ...]
    before: np.ndarray
    after: np.ndarray

    @property
    def has_matrix(self) -> bool:
        """Whether the classes are few enough for a matrix."""
        return len(self.classes) <= MOST_CLASSES

    def pairs(self, most: int = MOST_PAIRS) -> tuple[ConfusedPair, ...]:
        """The pairs of classes that are mistaken most often by either of the two."""
        counts = np.maximum(self.before, self.after)
        np.fill_diagonal(counts, 0)
        order = np.argsort(-counts, axis=None, kind="stable")[:most]
        places = [np.unravel_index(at, counts.shape) for at in order if counts.flat[at]]
        return tuple(
            ConfusedPair(
                self.classes[row],
                self.classes[column],
                int(self.before[row, column]),
                int(self.after[row, column]),
            )
            for row, column in places
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the matrices are null where the classes are too many."""
        return {
            "reference": self.reference,
            "stage": self.stage,
            "classes": list(self.classes),
            "reference_counts": self.before.tolist() if self.has_matrix else None,
            "stage_counts": self.after.tolist() if self.has_matrix else None,
            "most_confused": [dict(vars(pair)) for pair in self.pairs()],
        }


def confusion_of(
    answered: Mapping[str, StageOutput], compared: Sequence[str], inputs: ParityInputs, classes: Sequence[str]
) -> Confusion | None:
    """The reference's answers and the last stage's against the right labels.

    Args:
        answered: what the stages answered, by name.
        compared: the reference and the stages that were compared with it, in the chain's order.
        classes: the model's labels, in the order of the logits.

    Returns:
        None for a task without one label per unit, without right labels, or without a stage beside
            the reference.
    """
    if inputs.truth is None or len(compared) < 2 or inputs.view.task not in _TASKS:
        return None
    known = inputs.truth != UNKNOWN
    if not known.any():
        return None
    counted = [
        _count(inputs.truth[known], answers_of(answered[name], inputs.view)[known], len(classes))
        for name in (compared[0], compared[-1])
    ]
    return Confusion(compared[0], compared[-1], tuple(classes), *counted)


def _count(right: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    counts = np.bincount(right.astype(np.int64) * classes + answers, minlength=classes * classes)
    return counts.reshape(classes, classes)
