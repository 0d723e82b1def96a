"""What token and multi-label classification are judged by: entities and F1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]
"""Type, first word, word after the last."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence, from BIO tags; IOB1, BIOES and BILOU are read as well.

    Lenient like the CoNLL evaluation: an `I-` without a beginning begins an entity, and so does one of
    another type than the entity before it.
    """
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate((*tags, "O")):
        prefix, _, name = tag.partition("-")
        inside = prefix in ("I", "E", "L") and bool(kind) and name == kind
        if not inside:
            if kind:
                found.add((kind, start, place))
            kind, start = (name, place) if prefix in _PREFIXES else ("", place)
        if kind and prefix in ("E", "L", "S", "U"):
            found.add((kind, start, place + 1))
            kind = ""
    return found


_PREFIXES = ("B", "I", "E", "L", "S", "U")


def mark_entities(labels: Iterable[str]) -> bool:
    """Whether labels are tags of entities, such as `B-PER` and `O`, and not, for example, parts of speech."""
    marked = [label for label in labels if label != "O"]
    return bool(marked) and all(
        label.partition("-")[0] in _PREFIXES and label.partition("-")[2] for label in marked
    )


def f1_figures(right: float, given: float, true: float) -> dict[str, float]:
    """Precision, recall and their harmonic mean; 0 where nothing was given or there was nothing to find."""
    return {
        "precision": right / given if given else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (given + true) if given + true else 0.0,
    }
