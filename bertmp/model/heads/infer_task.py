"""The task of a checkpoint, from its configuration or else from the names of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bertmp.core.errors import InputError
from bertmp.model.config import BertConfig

_TASKS = {
    "BertModel": "encoder",
    "BertForTokenClassification": "token-classification",
    "BertForPreTraining": "pretraining",
    "BertForMaskedLM": "masked-lm",
    "BertForNextSentencePrediction": "next-sentence",
}
"""Hugging Face's class → the task of our head for it."""

_SEQUENCE_CLASS = "BertForSequenceClassification"
_PROBLEMS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label-classification",
    "regression": "regression",
}
_UNSUPPORTED = ("BertForQuestionAnswering", "BertForMultipleChoice", "BertLMHeadModel")


class HasShape(Protocol):
    """Anything with a shape, such as a tensor or a graph's initializer."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def infer_task(config: BertConfig, weights: Mapping[str, HasShape], where: Path) -> str:
    """The task of a checkpoint's head.

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
        raise InputError(
            f"the checkpoint's head is {named}, which is not supported",
            where,
            "name another with --task, such as encoder",
        )
    if named in _TASKS:
        return _TASKS[named]
    if named == _SEQUENCE_CLASS:
        return _sequence_task(config, weights, where)
    return _infer_from_weights(config, weights, where)


def _infer_from_weights(config: BertConfig, weights: Mapping[str, HasShape], where: Path) -> str:
    if "classifier.weight" in weights:
        # Only Hugging Face's token classifier has no pooler.
        pooled = "bert.pooler.dense.weight" in weights
        return _sequence_task(config, weights, where) if pooled else "token-classification"
    mlm = any(name.startswith("cls.predictions.") for name in weights)
    nsp = any(name.startswith("cls.seq_relationship.") for name in weights)
    if mlm and nsp:
        return "pretraining"
    return "masked-lm" if mlm else "next-sentence" if nsp else "encoder"


def _sequence_task(config: BertConfig, weights: Mapping[str, HasShape], where: Path) -> str:
    """The task of a `BertForSequenceClassification`.

    Raises:
        InputError: a regression of more than one number.
    """
    classifier = weights.get("classifier.weight")
    width = classifier.shape[0] if classifier is not None else len(config.labels)
    problem = str(config.extra.get("problem_type"))
    task = _PROBLEMS.get(problem, "regression" if width == 1 else "classification")
    if task == "regression" and width > 1:
        raise InputError(
            f"the checkpoint's regression has {width} outputs, only one is supported",
            where,
            "name another head with --task",
        )
    return task
