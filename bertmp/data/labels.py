"""How the labels of a data file and the classes of a model are matched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class LabelMatch(NamedTuple):
    """Labels of a data file as classes of a model.

    Attributes:
        classes: label → class.
        note: how they were matched, where they are not the same; empty otherwise.
    """

    classes: Mapping[str, str]
    note: str = ""


def match_labels(found: Iterable[str], classes: Sequence[str]) -> LabelMatch | None:
    """Matches labels with classes by name, by name but for its case, or by number; None where neither fits.

    Args:
        found: the file's labels.
        classes: the model's, in the order of its logits.
    """
    labels = sorted(set(found))
    if set(labels) <= set(classes):
        return LabelMatch({label: label for label in labels})
    by_case = {name.casefold(): name for name in classes}
    if len(by_case) == len(classes) and all(label.casefold() in by_case for label in labels):
        match = {label: by_case[label.casefold()] for label in labels}
        return LabelMatch(
            match, f"labels are matched with the model's classes but for their case: {_shown(match)}"
        )
    if all(label.isdecimal() and int(label) < len(classes) for label in labels):
        match = {label: classes[int(label)] for label in labels}
        return LabelMatch(match, f"labels are taken for the numbers of the model's classes: {_shown(match)}")
    return None


def _shown(match: Mapping[str, str]) -> str:
    pairs = [f"{label} is {name}" for label, name in match.items()]
    return ", ".join(pairs[:5]) + (f" and {len(pairs) - 5} more" if len(pairs) > 5 else "")
