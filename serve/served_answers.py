"""What a text model answers to parity's examples, over the wire."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.text_stream import TextRow
from bertmp.export.answers import normalised
from bertmp.export.bundle import Bundle
from bertmp.export.parity.stage import ParityInputs
from bertmp.export.prediction.comparison import compare
from bertmp.export.prediction.predictor import Source
from bertmp.serve.client import Client
from bertmp.serve.served_tasks import CLASSIFIES, TASKS, WITH_MASKS
from bertmp.serve.serving_options import Texts
from bertmp.serve.text_requests import text_inputs


@dataclass(frozen=True)
class TextAnswers:
    """The answers to all examples, as far as parity can compare them with the units' numbers.

    Attributes:
        versions: the versions that answered, in order; the last one answered last.
        truncated: how many texts were cut.
        labels: the classes; empty for a task without.
        probabilities: FP32 `[texts, labels]`; None for a task without.
        answers: the classes' numbers, or of several labels one bit for each that is more likely than not;
            None for other tasks.
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
    texts, pairs = askable(inputs)
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
    settings = client.settings(model, texts[0], pair=pairs[0] if pairs else None)
    return TextAnswers(
        versions=sorted(set(versions)),
        truncated=int(found["TRUNCATED"].sum()),
        labels=() if task == "next-sentence" else labels,
        probabilities=found.get("PROBABILITIES"),
        answers=_numbers(task, labels, found, settings.get("threshold", 0.5)),
        values=found.get("VALUE"),
    )


def askable(inputs: ParityInputs) -> Texts:
    """The examples as a text model takes them: where it fills masks, with one at the end."""
    if inputs.view.task in WITH_MASKS:
        return [f"{text} [MASK]" for text in inputs.texts], None
    return inputs.texts, inputs.pairs


def _numbers(
    task: str, labels: Sequence[str], found: dict[str, np.ndarray], threshold: float
) -> np.ndarray | None:
    """The labels of each text as numbers.

    Raises:
        InputError: the server answered with a label that it does not have, or with other labels than its
            probabilities and threshold say.
    """
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
    for one, scores in zip(given, found["PROBABILITIES"], strict=True):
        above = [label for label, score in zip(labels, scores, strict=True) if score > threshold]
        if one != above:
            what = f"the server answered {one} where its probabilities say {above}"
            raise InputError(what, "", "deploy again")
    likely = found["PROBABILITIES"] > 0.5  # whatever the threshold: what parity compares
    return np.array([sum(1 << int(at) for at in np.flatnonzero(row)) for row in likely], object)


MOST = 256
"""Examples whose answers are compared with those of the graph in this process."""
CLOSE = 1e-5
"""By how much a score, a value or an element of an embedding may differ then."""


def answers_difference(client: Client, model: str, inputs: ParityInputs, version: str) -> str | None:
    """What first differs in a text model's answers from those of the bundle's FP32 graph, run here.

    Texts that are too long are left out unless the model cuts them, as it is done here.

    Returns:
        Empty where nothing differs; None where there is no bundle, or the model does not say how it answers.
    """
    texts, pairs = askable(inputs)
    settings = client.settings(model, texts[0], version, pairs[0] if pairs else None)
    if inputs.bundle is None or not settings:
        return None
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(MOST, len(texts))).astype(int)).tolist()
    rows = [TextRow(at, texts[at], pairs[at] if pairs else None) for at in chosen]
    choices = {name: settings[name] for name in ("threshold", "pooling", "aggregation")}
    here = Source.find(Bundle.open(inputs.bundle), "fp32").open(**choices)
    wanted = here.answer(rows, lambda count: None, str(inputs.bundle))
    for row, expected in zip(rows, wanted, strict=True):
        if expected["truncated"] and settings["long_text"] != "truncate":
            continue
        (found,) = client.ask(model, [row.text], None if row.pair is None else [row.pair], version)
        if "embedding" in expected:
            expected = {"embedding": normalised(np.array(expected["embedding"])).tolist()}
        difference = compare(expected, found.to_json())
        scale = max(1.0, abs(expected.get("value", 0.0)))
        if difference.changed or difference.largest > CLOSE * scale:
            how = "another answer" if difference.changed else f"{difference.largest:.3g} off"
            return f"{how} to {row.text[:80]!r}"
    return ""
