"""Heads: one class per task."""

from __future__ import annotations

from bertmp.core.errors import InputError
from bertmp.model.heads.fine_tuning import (
    MultiLabelClassifier,
    Regressor,
    SequenceClassifier,
    TokenClassifier,
)
from bertmp.model.heads.head import EncoderOnly, Head, LossOptions
from bertmp.model.heads.pretraining import MaskedLanguageModel, NextSentence, PreTraining

HEADS: dict[str, type[Head]] = {
    head.task: head
    for head in (
        EncoderOnly,
        SequenceClassifier,
        MultiLabelClassifier,
        Regressor,
        TokenClassifier,
        PreTraining,
        MaskedLanguageModel,
        NextSentence,
    )
}

__all__ = [
    "HEADS",
    "EncoderOnly",
    "Head",
    "LossOptions",
    "MaskedLanguageModel",
    "MultiLabelClassifier",
    "NextSentence",
    "PreTraining",
    "Regressor",
    "SequenceClassifier",
    "TokenClassifier",
    "head_for",
]


def head_for(task: str) -> type[Head]:
    """The head of a task.

    Raises:
        InputError: unknown task.
    """
    if task not in HEADS:
        raise InputError(f"unknown task '{task}'", "--task", f"use one of {', '.join(HEADS)}")
    return HEADS[task]
