"""Heads: one class per task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bertmp.core.errors import InputError
from bertmp.model.config import BertConfig
from bertmp.model.heads.fine_tuning import (
    MultiLabelClassifier,
    Regressor,
    SequenceClassifier,
    TokenClassifier,
)
from bertmp.model.heads.head import EncoderOnly, Head
from bertmp.model.heads.head import LossOptions as LossOptions
from bertmp.model.heads.pretraining import MaskedLanguageModel, NextSentence, PreTraining

_FINE_TUNING = (SequenceClassifier, MultiLabelClassifier, Regressor, TokenClassifier)
_PRE_TRAINING = (PreTraining, MaskedLanguageModel, NextSentence)
HEADS: dict[str, type[Head]] = {head.task: head for head in (EncoderOnly, *_FINE_TUNING, *_PRE_TRAINING)}

_UNSUPPORTED = ("BertForQuestionAnswering", "BertForMultipleChoice", "BertLMHeadModel")


def head_for(task: str) -> type[Head]:
    """The head of a task.

    Raises:
        InputError: unknown task.
    """
    if task not in HEADS:
        raise InputError(f"unknown task '{task}'", "--task", f"use one of {', '.join(HEADS)}")
    return HEADS[task]


def infer_head(config: BertConfig, weights: Mapping[str, Tensor], where: Path) -> type[Head]:
    """The head of a checkpoint, from its configuration or else from the names of its weights.

    Args:
        config: the checkpoint's configuration.
        weights: its weights by canonical name; see `bertmp.model.weights`.
        where: the folder, for messages.

    Raises:
        InputError: the configuration names a head that is not supported.
    """
    listed = config.extra.get("architectures")
    named = str(listed[0]) if isinstance(listed, list) and listed else ""
    if named in _UNSUPPORTED:
        what = f"the checkpoint's head is {named}, which is not supported"
        raise InputError(what, where, "name another with --task, such as encoder")
    alike = [head for head in HEADS.values() if head.architecture == named]
    if len(alike) == 1:
        return alike[0]
    if alike:
        return _sequence_head(config, weights, where)
    if "classifier.weight" in weights:
        # Only Hugging Face's token classifier has no pooler.
        pooled = "bert.pooler.dense.weight" in weights
        return _sequence_head(config, weights, where) if pooled else TokenClassifier
    mlm = any(name.startswith("cls.predictions.") for name in weights)
    nsp = any(name.startswith("cls.seq_relationship.") for name in weights)
    if mlm and nsp:
        return PreTraining
    return MaskedLanguageModel if mlm else NextSentence if nsp else EncoderOnly


def _sequence_head(config: BertConfig, weights: Mapping[str, Tensor], where: Path) -> type[Head]:
    """The head of a `BertForSequenceClassification`.

    Raises:
        InputError: a regression of more than one number.
    """
    width = weights["classifier.weight"].shape[0] if "classifier.weight" in weights else len(config.labels)
    problems = {head.problem: head for head in HEADS.values() if head.problem}
    problem = str(config.extra.get("problem_type"))
    head = problems.get(problem, Regressor if width == 1 else SequenceClassifier)
    if head is Regressor and width > 1:
        what = f"the checkpoint's regression has {width} outputs, only one is supported"
        raise InputError(what, where, "name another head with --task")
    return head
