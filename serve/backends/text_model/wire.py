"""A text model's answers as tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from .answers import Answer, Classes, Embedding, Entities, Fills, LabelSet, Scorer, Value, normalised
from .reading import Row

ENTITY = ("label", "field", "start", "end", "score")


@dataclass(frozen=True)
class Answered:
    """A row and the scores of all that was read of it."""

    row: Row
    scores: np.ndarray


def tensors(
    decoder: Scorer, rows: Sequence[Answered], facts: dict[str, bytes], wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """The wanted outputs of a request by name, `[batch, …]`.

    Args:
        facts: outputs that are the same for every text.
    """
    found = {name: value for name, value in _of_task(decoder, rows).items() if name in wanted}
    for name, (dtype, value) in _OF_ROWS.items():
        if name in wanted:
            found[name] = np.array([[value(one.row)] for one in rows], dtype)
    for name, told in facts.items():
        if name in wanted:
            found[name] = _column([told] * len(rows))
    return found


_OF_ROWS: dict[str, tuple[type, Callable[[Row], int]]] = {
    "TRUNCATED": (np.bool_, lambda row: row.truncated),
    "WINDOWS": (np.int32, lambda row: len(row.windows)),
    "TOKENS": (np.int32, lambda row: len(row.tokens.ids)),
}
"""What is said about how a text was read."""


def _of_task(decoder: Scorer, rows: Sequence[Answered]) -> dict[str, np.ndarray]:
    if decoder.per_token:
        return _of_places(decoder, [decoder.answer(one.scores, one.row.tokens) for one in rows])
    scores = np.stack([one.scores for one in rows])
    if isinstance(decoder, Classes):
        labels = [decoder.labels[best].encode() for best in scores.argmax(axis=1)]
        return {"LABEL": _column(labels), "PROBABILITIES": scores}
    if isinstance(decoder, LabelSet):
        return {"LABELS": _as_json([decoder.found(one) for one in scores]), "PROBABILITIES": scores}
    if isinstance(decoder, Embedding):
        return {"EMBEDDING": np.stack([normalised(one) for one in scores])}
    assert isinstance(decoder, Value)
    return {"VALUE": scores}


def _of_places(decoder: Scorer, answers: Sequence[Answer]) -> dict[str, np.ndarray]:
    if isinstance(decoder, Fills):
        return {"FILLS": _as_json([one["fills"] for one in answers])}
    assert isinstance(decoder, Entities)
    found = [[{key: e[key] for key in ENTITY if key in e} for e in one["entities"]] for one in answers]
    return {"ENTITIES": _as_json(found)}


def _as_json(values: Sequence[object]) -> np.ndarray:
    return _column([json.dumps(value, ensure_ascii=False).encode() for value in values])


def _column(values: Sequence[bytes]) -> np.ndarray:
    """BYTES `[batch, 1]`."""
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column
