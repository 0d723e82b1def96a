"""Entities in tagged sentences, and how many of them are right (Tjong Kim Sang and De Meulder 2003)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[str, int, int]
"""Type, first word, word after the last."""

_PREFIXES = ("B", "I", "E", "L", "S", "U")


def bio_spans(tags: Sequence[str]) -> set[Span]:
    """The entities of one sentence, from BIO tags; IOB1, BIOES and BILOU are read as well.

    Lenient like the CoNLL evaluation: an `I-` without a beginning begins an entity, and so does one of
    another type than the entity before it.
    """
    found: set[Span] = set()
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


def has_entity_tags(labels: Iterable[str]) -> bool:
    """Whether labels are tags of entities, such as `B-PER` and `O`, and not, for example, parts of speech."""
    marked = [label.partition("-") for label in labels if label != "O"]
    return bool(marked) and all(prefix in _PREFIXES and kind for prefix, _, kind in marked)


def span_counts(answers: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Entities of each sentence: correct in type and boundaries, answered, and true.

    Args:
        answers: the tags of each sentence's words.
        truth: the true ones.

    Returns:
        INT64 `[sentences, 3]`.
    """
    counts = np.zeros((len(truth), 3), np.int64)
    for row, (answered, wanted) in enumerate(zip(answers, truth, strict=True)):
        found, true = bio_spans(answered), bio_spans(wanted)
        counts[row] = len(found & true), len(found), len(true)
    return counts
