"""A text model's answers as tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
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


def tensors(decoder: Scorer, rows: Sequence[Answered], facts: dict[str, bytes]) -> dict[str, np.ndarray]:
    """All outputs of a request by name, `[batch, …]`.

    Args:
        facts: outputs that are the same for every text.
    """
    return {
        **_of_task(decoder, rows),
        "TRUNCATED": np.array([[one.row.truncated] for one in rows], bool),
        "WINDOWS": np.array([[len(one.row.windows)] for one in rows], np.int32),
        "TOKENS": np.array([[len(one.row.tokens.ids)] for one in rows], np.int32),
        **{name: _column([value] * len(rows)) for name, value in facts.items()},
    }


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
