"""The answers that a client gets, one class for each task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertmp.core.io import JsonSerializable
from bertmp.export.answers import number
from bertmp.serve.served_tasks import CLASSIFIES


@dataclass(frozen=True, kw_only=True)
class Answer(JsonSerializable):
    """What all answers have.

    Attributes:
        text, text_pair: what was asked; `text_pair` is None for a single text.
        version: the version that answered.
        truncated: whether the text was cut to the model's maximum length.
        windows: in how many overlapping windows it was read.
        tokens: how many of its tokens were read.
    """

    text: str
    text_pair: str | None = None
    version: int
    truncated: bool
    windows: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; the answer itself comes after what was asked."""
        values = super().to_json()
        asked = {name: values.pop(name) for name in ("text", "text_pair")}
        facts = {name: values.pop(name) for name in ("version", "truncated", "windows", "tokens")}
        return {name: one for name, one in asked.items() if one is not None} | values | facts


@dataclass(frozen=True, kw_only=True)
class ClassAnswer(Answer):
    """One label of several.

    Attributes:
        label: the one with the highest probability.
        probability: of it, 0 to 1.
        scores: the probability of each label.
    """

    label: str
    probability: float
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LabelsAnswer(Answer):
    """Any number of labels: those above the model's threshold, and `scores`, the probability of each."""

    labels: list[str]
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ValueAnswer(Answer):
    """A regression's value."""

    value: float


@dataclass(frozen=True, kw_only=True)
class EntitiesAnswer(Answer):
    """Spans of text, each with `label`, `start`, `end` (in characters), `score` and `text`."""

    entities: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class EmbeddingAnswer(Answer):
    """The text as a vector of length 1."""

    embedding: list[float]


@dataclass(frozen=True, kw_only=True)
class FillsAnswer(Answer):
    """Words for each `[MASK]`: `start`, `end` and `candidates`, each with a `token` and its `score`."""

    fills: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RefusedText(JsonSerializable):
    """What stands in the place of an answer where the server refused the text, and the others went on.

    Attributes:
        text, text_pair: what was asked; `text_pair` is None for a single text.
        error: the server's reason.
        where: the text's place, such as `questions.txt, line 7`.
    """

    text: str
    text_pair: str | None = None
    error: str
    where: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {name: one for name, one in super().to_json().items() if one is not None}
        # What is not Unicode cannot be written; it may be why the text was refused.
        return {name: one.encode("utf-8", "backslashreplace").decode() for name, one in values.items()}


Outputs = Mapping[str, np.ndarray]


def answers_of(
    task: str,
    labels: Sequence[str],
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    outputs: Outputs,
    version: int,
) -> list[Answer]:
    """One response as answers.

    Args:
        task: what the model answers.
        labels: its classes, in the order of the probabilities.
        texts, pairs: what was asked.
        outputs: what came back, `[batch, …]` by name.
        version: the version that answered.
    """
    make = _OF_TASK[task]
    return [
        make(
            labels,
            {name: values[row] for name, values in outputs.items()},
            {
                "text": text,
                "text_pair": None if pairs is None else pairs[row],
                "version": version,
                "truncated": bool(outputs["TRUNCATED"][row].reshape(-1)[0]),
                "windows": int(outputs["WINDOWS"][row].reshape(-1)[0]) if "WINDOWS" in outputs else 1,
                "tokens": int(outputs["TOKENS"][row].reshape(-1)[0]),
            },
        )
        for row, text in enumerate(texts)
    ]


Make = Callable[[Sequence[str], Outputs, dict[str, Any]], Answer]
"""Labels, one row of each output, and what all answers have → the answer."""


def _class(labels: Sequence[str], row: Outputs, facts: dict[str, Any]) -> Answer:
    label, scores = row["LABEL"].reshape(-1)[0].decode(), _scores(labels, row)
    return ClassAnswer(label=label, probability=number(row["PROBABILITIES"].max()), scores=scores, **facts)


def _labels(labels: Sequence[str], row: Outputs, facts: dict[str, Any]) -> Answer:
    return LabelsAnswer(labels=_json(row, "LABELS"), scores=_scores(labels, row), **facts)


def _scores(labels: Sequence[str], row: Outputs) -> dict[str, float]:
    return {label: number(one) for label, one in zip(labels, row["PROBABILITIES"], strict=True)}


def _value(labels: Sequence[str], row: Outputs, facts: dict[str, Any]) -> Answer:
    return ValueAnswer(value=number(row["VALUE"].reshape(-1)[0]), **facts)


def _entities(labels: Sequence[str], row: Outputs, facts: dict[str, Any]) -> Answer:
    by_field = {"text": facts["text"], "text_pair": facts["text_pair"]}
    found = [
        {**one, "text": by_field[one.get("field", "text")][one["start"] : one["end"]]}
        for one in _json(row, "ENTITIES")
    ]
    return EntitiesAnswer(entities=found, **facts)


def _embedding(labels: Sequence[str], row: Outputs, facts: dict[str, Any]) -> Answer:
    return EmbeddingAnswer(embedding=[number(one) for one in row["EMBEDDING"]], **facts)


def _fills(labels: Sequence[str], row: Outputs, facts: dict[str, Any]) -> Answer:
    return FillsAnswer(fills=_json(row, "FILLS"), **facts)


def _json(row: Outputs, name: str) -> Any:
    return json.loads(row[name].reshape(-1)[0])


_OF_TASK: Mapping[str, Make] = {
    **dict.fromkeys(CLASSIFIES, _class),
    "multi-label-classification": _labels,
    "regression": _value,
    "token-classification": _entities,
    "encoder": _embedding,
    "masked-lm": _fills,
    "pretraining": _fills,
}
