"""Real texts as a graph's inputs: what ranges and errors are measured on.

Padding and length are part of what a graph meets in service, so that they are part of this: each text
without padding, texts padded to the longest of them, and rows of the greatest length that the model takes,
one full and one nearly all padding.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.export.graph.ort_sessions import Feed

TEXTS = 64
BRIEF = 256
_PADDED = 8
_BATCH = 16
_LONGEST = 4096
"""A tokenizer that names a greater length does not know its model's."""

_MEANINGS = {
    "input_ids": "ids",
    "ids": "ids",
    "attention_mask": "mask",
    "input_mask": "mask",
    "mask": "mask",
    "token_type_ids": "types",
    "segment_ids": "types",
    "position_ids": "positions",
}
"""What encoder graphs call their inputs."""


@dataclass(frozen=True)
class Calibration:
    """Texts as a graph's inputs.

    Attributes:
        feeds: input name → array `[batch, length]`, batch after batch.
        masks: for every feed, which tokens are no padding, truth values `[batch, length]`.
        file: the file of texts.
        sha256: of that file.
        texts: how many texts of it were taken.
    """

    feeds: Sequence[Feed]
    masks: Sequence[np.ndarray]
    file: str
    sha256: str
    texts: int

    def brief(self) -> Calibration:
        """The smallest batches, of `BRIEF` tokens in all or a little more."""
        chosen, tokens = [], 0
        for number in sorted(range(len(self.feeds)), key=lambda each: self.masks[each].size):
            if tokens >= BRIEF:
                break
            chosen.append(number)
            tokens += self.masks[number].size
        return replace(
            self,
            feeds=[self.feeds[number] for number in chosen],
            masks=[self.masks[number] for number in chosen],
            texts=sum(len(self.masks[number]) for number in chosen),
        )


@dataclass(frozen=True)
class _Shape:
    """What a graph's inputs are: meaning → (name, numpy type); batch and length where they are fixed."""

    inputs: Mapping[str, tuple[str, np.dtype[Any]]]
    batch: int | None
    length: int | None


def read_calibration(
    data: Path, tokenizer: Path, graph: ModelProto, *, texts: int = TEXTS, seed: int = 0
) -> Calibration:
    """Reads texts and makes them the graph's inputs.

    Args:
        data: a data file; labels in it are ignored.
        tokenizer: the folder of a tokenizer, and of a `config.json` where the model's greatest length is
            known.
        graph: takes token ids, and any of attention mask, token types and positions, all `[batch, length]`.
        texts: at most so many are taken, drawn with `seed`; the shortest and the longest are among them.

    Errors: InputError for a file that cannot be read or holds no text, for a folder without a tokenizer, and
    for a graph whose inputs texts cannot become.
    """
    examples = _sample(read_examples(Path(data), Columns()), texts, seed)
    shape = _shape(graph, data)
    longest = _greatest_length(Path(tokenizer))
    limit = min(length for length in (shape.length, longest, _LONGEST) if length)
    reader = _tokenizer(Path(tokenizer), limit)
    rows = sorted(reader.encode(examples.texts, examples.pairs), key=len)
    batches = [*_of_equal_length(rows), _padded(rows)]
    if longest or shape.length:
        batches.append(([_full_row(reader, examples, rows, limit), rows[0]], limit))
    feeds = [
        _feed(part, shape.length or length, shape, reader.pad_id)
        for batch, length in batches
        for part in _in_batches(batch, shape.batch)
    ]
    return Calibration(
        feeds=[feed for feed, _ in feeds],
        masks=[mask for _, mask in feeds],
        file=str(data),
        sha256=sha256_file(Path(data)),
        texts=len(examples),
    )


def _sample(examples: Examples, texts: int, seed: int) -> Examples:
    """At most `texts` rows in the file's order, the same ones every time, with the extremes of length."""
    if len(examples) <= texts:
        return examples
    by_length = sorted(range(len(examples)), key=lambda row: len(examples.texts[row]))
    ends = [by_length[-1], by_length[0]][:texts]
    others = sorted(set(by_length) - set(ends))
    drawn = random.Random(seed).sample(others, texts - len(ends))
    rows = sorted([*ends, *drawn])
    pairs = [examples.pairs[row] for row in rows] if examples.pairs is not None else None
    return Examples([examples.texts[row] for row in rows], pairs, None, examples.source)


def _greatest_length(folder: Path) -> int | None:
    """The most tokens that the model takes, as `config.json` or the tokenizer's settings say it."""
    keys = (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length"))
    for file, key in keys:
        if (folder / file).is_file():
            settings = read_json(folder / file)
            value = settings.get(key) if isinstance(settings, dict) else None
            if isinstance(value, int) and 2 < value <= _LONGEST:
                return value
    return None


def _tokenizer(folder: Path, limit: int) -> Tokenizer:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(
            "no tokenizer for the calibration texts: neither tokenizer.json nor vocab.txt",
            folder,
            "name its folder with --tokenizer",
        )
    return Tokenizer.load(folder, limit)


def _shape(graph: ModelProto, data: Path) -> _Shape:
    """Errors: InputError for an input that is none of a text encoder's."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs: dict[str, tuple[str, np.dtype[Any]]] = {}
    fixed: list[int | None] = [None, None]
    for value in graph.graph.input:
        if value.name in weights:
            continue
        kind, dims = value.type.tensor_type, value.type.tensor_type.shape.dim
        meaning = _MEANINGS.get(value.name.lower())
        if meaning is None or meaning in inputs or len(dims) != 2:
            raise InputError(
                f"texts cannot become the graph's input '{value.name}'", data, "calibrate a text encoder"
            )
        inputs[meaning] = (value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        fixed = [dim.dim_value or known for dim, known in zip(dims, fixed, strict=True)]
    if "ids" not in inputs:
        raise InputError("the graph takes no token ids", data, "calibrate a text encoder")
    return _Shape(inputs, *fixed)


Rows = Sequence[Encoded]


def _of_equal_length(rows: Rows) -> list[tuple[Rows, int]]:
    """Every text without padding; texts of the same length share a batch."""
    groups = [list(group) for _, group in groupby(rows, key=len)]
    return [
        (group[start : start + _BATCH], len(group[0]))
        for group in groups
        for start in range(0, len(group), _BATCH)
    ]


def _padded(rows: Rows) -> tuple[Rows, int]:
    """Some texts from the shortest to the longest, padded to the longest."""
    places = np.linspace(0, len(rows) - 1, min(_PADDED, len(rows)))
    return [rows[int(place)] for place in places], len(rows[-1])


def _full_row(reader: Tokenizer, examples: Examples, rows: Rows, limit: int) -> Encoded:
    """The texts one after the other, as many as fill a row of the greatest length."""
    again = 1 + limit // max(1, sum(len(row) - 2 for row in rows))
    return reader.encode([" ".join(list(examples.texts) * again)])[0]


def _in_batches(rows: Rows, size: int | None) -> list[Rows]:
    """Rows in batches of the one size that the graph takes; the last row fills the last batch."""
    if size is None:
        return [rows]
    parts = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    return [part + part[-1:] * (size - len(part)) for part in parts]


def _feed(rows: Rows, length: int, shape: _Shape, pad_id: int) -> tuple[Feed, np.ndarray]:
    """The tensors for some texts, padded to `length`, and which of their tokens are no padding."""
    size = (len(rows), length)
    values = {
        "ids": np.full(size, pad_id, np.int64),
        "mask": np.zeros(size, np.int64),
        "types": np.zeros(size, np.int64),
        "positions": np.broadcast_to(np.arange(length), size),
    }
    for place, text in enumerate(rows):
        values["ids"][place, : len(text)] = text.input_ids
        values["mask"][place, : len(text)] = 1
        values["types"][place, : len(text)] = text.token_type_ids
    feed = {name: values[meaning].astype(kind) for meaning, (name, kind) in shape.inputs.items()}
    return feed, values["mask"].astype(bool)
