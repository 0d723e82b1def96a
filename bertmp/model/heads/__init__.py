"""Heads: one class per task."""

from __future__ import annotations

from bertmp.core.errors import InputError
from bertmp.model.heads.head import EncoderOnly, Head, LossOptions
from bertmp.model.heads.mlm_nsp import MaskedLanguageModel, NextSentence
from bertmp.model.heads.pretraining import PreTraining
from bertmp.model.heads.sequence import MultiLabelClassifier, Regressor, SequenceClassifier
from bertmp.model.heads.token_classification import TokenClassifier

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
