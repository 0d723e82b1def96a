"""What stands on top of BERT: one class a task."""

from __future__ import annotations

from bertmp.errors import InputError
from bertmp.model.heads.base import EncoderOnly, Head, LossOptions
from bertmp.model.heads.classification import SequenceClassifier

HEADS: dict[str, type[Head]] = {head.task: head for head in (EncoderOnly, SequenceClassifier)}

__all__ = ["HEADS", "EncoderOnly", "Head", "LossOptions", "SequenceClassifier", "head_for"]


def head_for(task: str) -> type[Head]:
    """The head of a task.

    Errors: InputError for an unknown task.
    """
    if task not in HEADS:
        raise InputError(f"unknown task '{task}'", "--task", f"use one of {', '.join(HEADS)}")
    return HEADS[task]
