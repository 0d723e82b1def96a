"""What each task's models take and return over the wire, and how they answer: data, without Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bertmp.core.errors import InputError

Type = Literal["BYTES", "FP32", "BOOL", "INT32"]
LongText = Literal["truncate", "refuse", "window"]
Pooling = Literal["mean", "cls"]
Aggregation = Literal["simple", "first", "max"]


@dataclass(frozen=True)
class ServedTask:
    """A task as it is served.

    Attributes:
        answers: the outputs that only this task has, and their types.
        outputs: the graph's outputs, the one that answers first.
        per_token: whether the graph's first output has a row for each token.
        least_labels: how many labels a model has at least; 0 where it has none.
    """

    answers: Mapping[str, Type]
    outputs: Sequence[str] = ("logits",)
    per_token: bool = False
    least_labels: int = 0


SCORES: Mapping[str, Type] = {"PROBABILITIES": "FP32"}

TASKS: Mapping[str, ServedTask] = {
    "classification": ServedTask({"LABEL": "BYTES", **SCORES}, least_labels=2),
    "next-sentence": ServedTask({"LABEL": "BYTES", **SCORES}, ("seq_relationship_logits",), least_labels=2),
    "multi-label-classification": ServedTask({"LABELS": "BYTES", **SCORES}, least_labels=1),
    "regression": ServedTask({"VALUE": "FP32"}),
    "token-classification": ServedTask({"ENTITIES": "BYTES"}, per_token=True, least_labels=1),
    "encoder": ServedTask({"EMBEDDING": "FP32"}, ("last_hidden_state", "pooler_output"), True),
    "masked-lm": ServedTask({"FILLS": "BYTES"}, ("prediction_logits",), True),
    "pretraining": ServedTask({"FILLS": "BYTES"}, ("prediction_logits", "seq_relationship_logits"), True),
}
"""Task → how it is served. Question answering will take the context as TEXT_PAIR and return ANSWERS."""

FILES = "FILES"
"""A text model's output: the SHA-256 of the version's graph, engine and tokenizer, a JSON object by file."""

SETTINGS = "SETTINGS"
"""A text model's output: how the version answers, a JSON object with the task and `AnswerSettings`."""

COMMON: Mapping[str, Type] = {
    "TRUNCATED": "BOOL",
    "WINDOWS": "INT32",
    "TOKENS": "INT32",
    FILES: "BYTES",
    SETTINGS: "BYTES",
}
"""The outputs that every text model has."""

WITH_MASKS = ("masked-lm", "pretraining")
"""The tasks whose texts need a `[MASK]`."""

CLASSIFIES = ("classification", "next-sentence")
"""The tasks that answer with one label of several."""


def task_of(name: str, where: str | Path) -> ServedTask:
    """A task that can be served.

    Raises:
        InputError: it cannot.
    """
    if name not in TASKS:
        what = f"a model for {name} cannot be served"
        raise InputError(what, where, f"deploy one for {', '.join(TASKS)}")
    return TASKS[name]


def labels_of(task: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The classes that a model answers with: those of its bundle, or the task's own."""
    if task == "next-sentence":
        from bertmp.export.answers import NEXT_SENTENCE  # numpy is not for the command line

        return NEXT_SENTENCE
    return tuple(labels) if TASKS[task].least_labels else ()


@dataclass(frozen=True)
class AnswerSettings:
    """How a version answers, where its task leaves a choice.

    Attributes:
        long_text: what is done with a text beyond the model's length.
        pooling: how the tokens' states become an embedding.
        aggregation: what gets a label of an entity.
        threshold: the probability that a label of several must exceed.
    """

    long_text: LongText = "truncate"
    pooling: Pooling = "mean"
    aggregation: Aggregation = "simple"
    threshold: float = 0.5

    @classmethod
    def chosen(
        cls,
        task: str,
        long_text: LongText = "truncate",
        pooling: Pooling | None = None,
        aggregation: Aggregation | None = None,
        threshold: float | None = None,
    ) -> AnswerSettings:
        """The settings for a task.

        Raises:
            InputError: one was given that the task does not have.
        """
        given: dict[str, Any] = {"pooling": pooling, "aggregation": aggregation, "threshold": threshold}
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if task != _CHOICES[name]:
                todo = f"leave it out: it is for {_CHOICES[name]}"
                raise InputError(f"a model for {task} has no {name}", f"--{name}", todo)
        return cls(long_text, **given)


_CHOICES = {
    "pooling": "encoder",
    "aggregation": "token-classification",
    "threshold": "multi-label-classification",
}
"""Setting → the task that has it."""
