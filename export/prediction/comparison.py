"""Two answers to one text, compared: by how much they differ, and whether the outcome changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bertmp.core.errors import InputError
from bertmp.export.answers import Answer
from bertmp.export.prediction.predictor import Source


@dataclass(frozen=True)
class Difference:
    """How two answers differ.

    Attributes:
        largest: the largest difference of a probability, a value or an element of an embedding. An entity
            that only one has counts with its score; of fills, candidates that both list are compared.
        changed: whether the label, the set of labels, an entity's label or place, or a best fill differs;
            None where the answer is a number or an embedding.
    """

    largest: float
    changed: bool | None


def compare(one: Answer, other: Answer) -> Difference:
    """Compares two answers of the same task to the same text."""
    found = [measure(one[field], other[field]) for field, measure in _MEASURES.items() if field in one]
    kept = [one.get(field) == other.get(field) for field in ("label", "labels") if field in one]
    changes = [part.changed for part in found if part.changed is not None] + [not same for same in kept]
    return Difference(max(part.largest for part in found), any(changes) if changes else None)


def _of_scores(one: Mapping[str, float], other: Mapping[str, float]) -> Difference:
    names = {*one, *other}
    return Difference(max(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in names), None)


def _of_value(one: float, other: float) -> Difference:
    return Difference(abs(one - other), None)


def _of_embedding(one: list[float], other: list[float]) -> Difference:
    return Difference(max(abs(a - b) for a, b in zip(one, other, strict=True)), None)


def _of_entities(one: list[Answer], other: list[Answer]) -> Difference:
    before, after = _scores_by_place(one), _scores_by_place(other)
    largest = _of_scores(before, after).largest if before or after else 0.0
    return Difference(largest, before.keys() != after.keys())


def _scores_by_place(entities: list[Answer]) -> dict[str, float]:
    places = ("label", "field", "start", "end")
    return {str([entity.get(name) for name in places]): entity["score"] for entity in entities}


def _of_fills(one: list[Answer], other: list[Answer]) -> Difference:
    largest, changed = 0.0, len(one) != len(other)
    # One text may be cut shorter than the other: its last masks are then missing.
    for before, after in zip(one, other):  # noqa: B905
        scores = [{word["token"]: word["score"] for word in fill["candidates"]} for fill in (before, after)]
        both = scores[0].keys() & scores[1].keys()
        largest = max([largest, *(abs(scores[0][token] - scores[1][token]) for token in both)])
        changed = changed or next(iter(scores[0])) != next(iter(scores[1]))
    return Difference(largest, changed)


_MEASURES: Mapping[str, Callable[[Any, Any], Difference]] = {
    "scores": _of_scores,
    "value": _of_value,
    "embedding": _of_embedding,
    "entities": _of_entities,
    "fills": _of_fills,
    "next_sentence": compare,
}
"""The field of an answer → how it is compared."""


def require_comparable(one: Source, other: Source) -> None:
    """Checks that two graphs answer the same question.

    Raises:
        InputError: their tasks, labels or embeddings' sizes differ, or they are the same graph.
    """
    first, second = one.bundle, other.bundle
    where = f"{first.folder} and {second.folder}"
    if first.folder.resolve() == second.folder.resolve() and one.precision == other.precision:
        what = f"both are the bundle's {one.precision.upper()} graph"
        raise InputError(what, first.folder, "name another bundle, or another --against-precision")
    if first.task != second.task:
        what = f"the tasks differ: {first.task} and {second.task}"
        raise InputError(what, where, "compare bundles of one task")
    if set(first.labels) != set(second.labels):
        named = sorted({*first.labels} ^ {*second.labels})
        what = f"the labels differ: only one has {', '.join(named[:5])}"
        raise InputError(what, where, "compare bundles with the same labels")
    if first.task == "encoder" and first.config["hidden_size"] != second.config["hidden_size"]:
        sizes = f"{first.config['hidden_size']} and {second.config['hidden_size']}"
        raise InputError(f"the embeddings have {sizes} elements", where, "compare encoders of one size")
