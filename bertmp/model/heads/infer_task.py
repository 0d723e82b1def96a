"""What a checkpoint is: by what its configuration says, else by the names of its weights."""

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
"""Hugging Face's name of a class → the task of the head that stands for it."""

_SEQUENCE = "BertForSequenceClassification"
_PROBLEMS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label-classification",
    "regression": "regression",
}
_ELSEWHERE = ("BertForQuestionAnswering", "BertForMultipleChoice", "BertLMHeadModel")


class HasShape(Protocol):
    """Anything with a shape: a weight, or what stands for one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def detect_task(config: BertConfig, weights: Mapping[str, HasShape], where: Path) -> str:
    """The task of a checkpoint's head.

    Args:
        weights: by our names; see `bertmp.model.weights`.
        where: the folder, for messages.

    Errors: InputError where the configuration names a head that is not among ours.
    """
    listed = config.extra.get("architectures")
    named = str(listed[0]) if isinstance(listed, list) and listed else ""
    if named in _ELSEWHERE:
        raise InputError(
            f"the checkpoint's head is {named}, which is not one of ours",
            where,
            "name another with --task, such as encoder",
        )
    if named in _TASKS:
        return _TASKS[named]
    if named == _SEQUENCE:
        return _sequence_task(config, weights, where)
    return _by_weights(config, weights, where)


def _by_weights(config: BertConfig, weights: Mapping[str, HasShape], where: Path) -> str:
    if "classifier.weight" in weights:
        # Of Hugging Face's classifiers, the one of tokens is the one without a pooler.
        pooled = "bert.pooler.dense.weight" in weights
        return _sequence_task(config, weights, where) if pooled else "token-classification"
    words = any(name.startswith("cls.predictions.") for name in weights)
    pairs = any(name.startswith("cls.seq_relationship.") for name in weights)
    if words and pairs:
        return "pretraining"
    return "masked-lm" if words else "next-sentence" if pairs else "encoder"


def _sequence_task(config: BertConfig, weights: Mapping[str, HasShape], where: Path) -> str:
    """Which of the heads that Hugging Face has one class for.

    Errors: InputError for a regression of several numbers at once.
    """
    classifier = weights.get("classifier.weight")
    width = classifier.shape[0] if classifier is not None else len(config.labels)
    problem = str(config.extra.get("problem_type"))
    task = _PROBLEMS.get(problem, "regression" if width == 1 else "classification")
    if task == "regression" and width > 1:
        raise InputError(
            f"the checkpoint answers with {width} numbers a text, regression here has one",
            where,
            "name another head with --task",
        )
    return task
