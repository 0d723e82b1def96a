"""How the labels of a data file and the classes of a model are matched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bertmp.core.errors import InputError
from bertmp.data.readers import Examples


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


def split_labels(examples: Examples, separator: str) -> list[set[str]]:
    """The labels of each example: its label, or those that `separator` separates."""
    fields = examples.labels or ()
    if not separator:
        return [{field} for field in fields]
    return [{label.strip() for label in field.split(separator) if label.strip()} for field in fields]


def numbers_of(examples: Examples, todo: str = "give each text a number") -> np.ndarray:
    """The labels as numbers, FP32 `[examples]`.

    Raises:
        InputError: a label is not a finite number; names the first one's line.
    """
    limit = float(np.finfo(np.float32).max)
    values = [_number(label) for label in examples.labels or ()]
    for line, label, value in zip(examples.lines, examples.labels or (), values, strict=True):
        if not abs(value) <= limit:
            where = f"{examples.source}, line {line}"
            raise InputError(f"the label '{label}' is not a number", where, todo)
    return np.array(values, dtype=np.float32)


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan
