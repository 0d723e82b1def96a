"""Answers about a whole text: its label or labels, a number, an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .scorer import Answer, Scorer, Tokens, number, scores_of, sigmoid, softmax


@dataclass(frozen=True)
class Classes(Scorer):
    """One label of several: `label`, its `probability`, and `scores`, the probability of each.

    Attributes:
        labels: in the order of the logits.
        output: the logits' name, `[batch, labels]`.
    """

    labels: Sequence[str]
    output: str = "logits"

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)

    def scores(self, outputs: Mapping[str, np.ndarray], place: int, ids: Sequence[int]) -> np.ndarray:
        return softmax(outputs[self.output][place])

    def answer(self, scores: np.ndarray, row: Tokens) -> Answer:
        best = int(scores.argmax())
        return {
            "label": self.labels[best],
            "probability": number(scores[best]),
            "scores": scores_of(self.labels, scores),
        }


@dataclass(frozen=True)
class LabelSet(Scorer):
    """Any number of labels: `labels`, those above `threshold`, and `scores`, the probability of each."""

    names: Sequence[str]
    threshold: float = 0.5

    def scores(self, outputs: Mapping[str, np.ndarray], place: int, ids: Sequence[int]) -> np.ndarray:
        return sigmoid(outputs["logits"][place])

    def found(self, scores: np.ndarray) -> list[str]:
        """The labels above the threshold."""
        return [name for name, score in zip(self.names, scores) if score > self.threshold]  # noqa: B905

    def answer(self, scores: np.ndarray, row: Tokens) -> Answer:
        return {"labels": self.found(scores), "scores": scores_of(self.names, scores)}


@dataclass(frozen=True)
class Value(Scorer):
    """A regression's `value`."""

    def scores(self, outputs: Mapping[str, np.ndarray], place: int, ids: Sequence[int]) -> np.ndarray:
        return outputs["logits"][place]

    def answer(self, scores: np.ndarray, row: Tokens) -> Answer:
        return {"value": number(scores[0])}


POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class Embedding(Scorer):
    """An encoder's `embedding` of the text, `[hidden]`: the mean of its tokens' states, or `[CLS]`'s."""

    pooling: str = "mean"

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("last_hidden_state",)

    def scores(self, outputs: Mapping[str, np.ndarray], place: int, ids: Sequence[int]) -> np.ndarray:
        states = outputs["last_hidden_state"][place]
        return states[0] if self.pooling == "cls" else np.asarray(states[: len(ids)].mean(axis=0))

    def answer(self, scores: np.ndarray, row: Tokens) -> Answer:
        return {"embedding": [number(value) for value in scores]}


def normalised(vector: np.ndarray) -> np.ndarray:
    """A vector of length 1 in the same direction, FP32; zeros stay."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return np.asarray(vector / (length or 1.0), np.float32)
