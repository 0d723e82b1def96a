"""A few examples with the FP32 graph's answers, for `deploy`: what a version must answer before it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable, read_json, write_json
from bertmp.data.text_stream import TextRow
from bertmp.export.bundle import Bundle
from bertmp.export.parity.stage import ParityInputs
from bertmp.export.prediction.predictor import FILLING, Source

GOLDEN_EXAMPLES, FORMAT = "golden-examples.json", 1
MOST = 8
"""Examples: from the shortest to the longest, evenly by length."""
LONGEST = 4000
"""The most characters of a text."""


@dataclass(frozen=True)
class GoldenExample(JsonSerializable):
    """A text, or pair of texts, and what `predict` answers to it in FP32 with its default options."""

    text: str
    text_pair: str | None
    answer: dict[str, Any]


def golden_examples(bundle: Bundle, inputs: ParityInputs) -> list[GoldenExample]:
    """Some of a parity run's examples, answered by the FP32 graph."""
    rows = [_row(bundle, inputs, number) for number in _choose(inputs)]
    if not rows:
        return []
    answers = Source.find(bundle, "fp32").open().answer(rows, lambda _: None, str(bundle.folder))
    return [GoldenExample(row.text, row.pair, answer) for row, answer in zip(rows, answers, strict=True)]


def save_golden_examples(bundle: Bundle, examples: Sequence[GoldenExample] | None) -> None:
    """Writes the examples into the bundle; None removes those of an earlier run."""
    path = bundle.folder / GOLDEN_EXAMPLES
    if examples is None:
        path.unlink(missing_ok=True)
        return
    written = [example.to_json() for example in examples]
    write_json(path, {"format": FORMAT, "task": bundle.task, "examples": written})


def read_golden_examples(bundle: Bundle) -> tuple[GoldenExample, ...]:
    """Those of the bundle; none where parity was run by an earlier version of bertmp.

    Raises:
        InputError: the file is damaged.
    """
    path = bundle.folder / GOLDEN_EXAMPLES
    if not path.is_file():
        return ()
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise KeyError("format")
        return tuple(GoldenExample(**one) for one in content["examples"])
    except (KeyError, TypeError) as error:
        raise InputError("not a file of golden examples", path, "run 'bertmp parity' again") from error


def _choose(inputs: ParityInputs) -> Sequence[int]:
    """Examples that no model has to cut, evenly from the shortest to the longest."""
    fitting = [
        number
        for number, encoded in enumerate(inputs.encoded)
        if not encoded.truncated and len(inputs.texts[number]) <= LONGEST
    ]
    fitting.sort(key=lambda number: (len(inputs.encoded[number]), number))
    if len(fitting) <= MOST:
        return fitting
    return [fitting[round(at * (len(fitting) - 1) / (MOST - 1))] for at in range(MOST)]


def _row(bundle: Bundle, inputs: ParityInputs, number: int) -> TextRow:
    text = inputs.texts[number]
    if bundle.task in FILLING:  # the question is which word is missing
        text = " ".join([*text.split()[:-1], "[MASK]"])
    return TextRow(number + 1, text, None if inputs.pairs is None else inputs.pairs[number])
