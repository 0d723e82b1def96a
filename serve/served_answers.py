"""What a text model answers to parity's examples, over the wire."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bertmp.core.errors import InputError
from bertmp.export.parity.stage import ParityInputs
from bertmp.serve.client import Client, text_inputs
from bertmp.serve.served_tasks import CLASSIFIES, TASKS, WITH_MASKS


@dataclass(frozen=True)
class TextAnswers:
    """The answers to all examples, as far as parity can compare them with the units' numbers.

    Attributes:
        versions: the versions that answered, in order; the last one answered last.
        truncated: how many texts were cut.
        labels: the classes; empty for a task without.
        probabilities: FP32 `[texts, labels]`; None for a task without.
        answers: the classes' numbers, or of several labels one bit for each; None for other tasks.
        values: FP32 `[texts, 1]` of a regression; None for other tasks.
    """

    versions: list[int]
    truncated: int
    labels: Sequence[str] = ()
    probabilities: np.ndarray | None = None
    answers: np.ndarray | None = None
    values: np.ndarray | None = None


def ask_texts(
    client: Client, model: str, inputs: ParityInputs, advance: Callable[[int], None]
) -> TextAnswers:
    """Asks a text model for every example.

    Args:
        advance: called with the number of examples that were answered since the last call.

    Raises:
        InputError: the server does not answer, refuses a text, or answers with a label that it does not have.
    """
    served, task = client.describe(model), inputs.view.task
    texts = [f"{text} [MASK]" for text in inputs.texts] if task in WITH_MASKS else inputs.texts
    pairs = inputs.pairs
    labels = client.labels(model, texts[0], pairs[0] if pairs else None) if served.classes else []
    names = (*TASKS[task].answers, "TRUNCATED")
    replies, versions = [], []
    for start in range(0, len(texts), served.max_batch):
        rows = slice(start, start + served.max_batch)
        outputs, version = client.infer(model, text_inputs(texts[rows], pairs and pairs[rows]), names)
        replies.append(outputs)
        versions.append(version)
        advance(len(texts[rows]))
    found = {name: np.concatenate([reply[name] for reply in replies]) for name in names}
    return TextAnswers(
        versions=sorted(set(versions)),
        truncated=int(found["TRUNCATED"].sum()),
        labels=labels,
        probabilities=found.get("PROBABILITIES"),
        answers=_numbers(task, labels, found),
        values=found.get("VALUE"),
    )


def _numbers(task: str, labels: Sequence[str], found: dict[str, np.ndarray]) -> np.ndarray | None:
    """The labels of each text as numbers."""
    if task in CLASSIFIES:
        given = [[label.decode()] for label in found["LABEL"].reshape(-1)]
    elif task == "multi-label-classification":
        given = [json.loads(text) for text in found["LABELS"].reshape(-1)]
    else:
        return None
    if unknown := {label for one in given for label in one} - set(labels):
        what = f"the server answered '{min(unknown)}', which is not one of its labels"
        raise InputError(what, "", "deploy again")
    if task in CLASSIFIES:
        return np.array([labels.index(label) for (label,) in given])
    return np.array([sum(1 << labels.index(label) for label in one) for one in given], object)
