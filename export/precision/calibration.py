"""Calibration: real examples as a graph's inputs, on which ranges and errors are measured.

Padding and length matter in service, so the inputs vary them: each example without padding, examples padded
to the longest of them, and rows of the model's greatest length, one full and one nearly all padding.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.batches import pad_batch
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.export.graph.ort_sessions import Feed

EXAMPLES = 64
BRIEF_TOKENS = 256
_PADDED = 8
_BATCH = 16
_LONGEST = 4096
"""A tokenizer that gives a greater length does not know the model's."""

_ROLES = {
    "ids": ("input_ids", "ids", "input_word_ids", "input_token", "input", "tokens"),
    "mask": ("attention_mask", "input_mask", "mask", "padding_mask"),
    "types": ("token_type_ids", "segment_ids", "input_type_ids", "input_segment", "segments"),
    "positions": ("position_ids", "input_position", "positions"),
}
"""The role of an input → its names in graphs of PyTorch, TensorFlow and Keras, without their endings."""

_ENDING = re.compile(r"([:.]\d+|___\d+)+$")
"""What exporters append to a name: TensorFlow's `:0`, PyTorch's `.1`."""


@dataclass(frozen=True)
class Calibration:
    """Examples as a graph's inputs.

    Attributes:
        feeds: input name → array `[batch, length]`, batch after batch.
        masks: for every feed, which tokens are not padding, BOOL `[batch, length]`.
        file: the file of examples.
        sha256: of that file.
        texts: how many examples of it are used.
    """

    feeds: Sequence[Feed]
    masks: Sequence[np.ndarray]
    file: str
    sha256: str
    texts: int

    @property
    def fp32_feeds(self) -> list[Feed]:
        """The feeds with 16-bit inputs as FP32: as the emulation of a mixed-precision graph takes them."""
        return [
            {name: array.astype(np.float32) if _is_low(array) else array for name, array in feed.items()}
            for feed in self.feeds
        ]

    def brief(self) -> Calibration:
        """The smallest batches, of `BRIEF_TOKENS` tokens in all or a little more."""
        chosen, tokens = [], 0
        for number in sorted(range(len(self.feeds)), key=lambda each: self.masks[each].size):
            if tokens >= BRIEF_TOKENS:
                break
            chosen.append(number)
            tokens += self.masks[number].size
        feeds, masks = [self.feeds[number] for number in chosen], [self.masks[number] for number in chosen]
        return replace(self, feeds=feeds, masks=masks, texts=sum(map(len, masks)))


def _is_low(array: np.ndarray) -> bool:
    return array.dtype.itemsize == 2 and array.dtype.kind in "fV"


@dataclass(frozen=True)
class _Shape:
    """A graph's inputs: role → (name, numpy type); batch and length where they are fixed.

    `others` are inputs `[batch]` that identify the examples: name → numpy type.
    """

    inputs: Mapping[str, tuple[str, np.dtype[Any]]]
    others: Mapping[str, np.dtype[Any]]
    batch: int | None
    length: int | None


def read_calibration(
    data: Path,
    tokenizer: Path,
    graph: ModelProto,
    columns: Columns | None = None,
    *,
    names: Sequence[str] = (),
    texts: int = EXAMPLES,
    seed: int = 0,
    progress: ProgressCallback = null_progress,
) -> Calibration:
    """Reads examples and encodes them as the graph's inputs.

    Args:
        data: a data file; labels in it are ignored.
        tokenizer: the folder of a tokenizer; the model's greatest length is read from its `config.json`.
        graph: takes token ids, and any of attention mask, token types and positions, all `[batch, length]`.
        columns: how the file is read.
        names: inputs that their names do not tell, as `ROLE=NAME`; the roles are ids, mask, types, positions.
        texts: the most examples, drawn with `seed`; the shortest and the longest are among them.
        progress: told how the file was read, where that is not obvious.

    Raises:
        InputError: the file cannot be read or is empty, the folder has no tokenizer, or the graph has
            an input that is not a text encoder's.
    """
    examples = _sample(read_examples(Path(data), columns, progress=progress), texts, seed)
    shape = _shape(graph, data, _named_roles(names))
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
    inputs, masks = [feed for feed, _ in feeds], [mask for _, mask in feeds]
    return Calibration(inputs, masks, str(data), sha256_file(Path(data)), len(examples))


def _sample(examples: Examples, texts: int, seed: int) -> Examples:
    """At most `texts` rows in the file's order, always the same, with the shortest and the longest."""
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
    """The most tokens that the model takes, by `config.json` or the tokenizer's settings."""
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
        what = "no tokenizer for the calibration examples: neither tokenizer.json nor vocab.txt"
        raise InputError(what, folder, "give its folder with --tokenizer")
    return Tokenizer.load(folder, limit)


def _named_roles(names: Sequence[str]) -> dict[str, str]:
    """Name of an input → its role, as the user gives them."""
    found = {}
    for text in names:
        role, mark, name = text.partition("=")
        if not mark or not name or role not in _ROLES:
            raise InputError(
                f"'{text}' names no input", "--input", f"write ROLE=NAME, ROLE one of {', '.join(_ROLES)}"
            )
        found[name] = role
    return found


def _role(name: str) -> str | None:
    plain = _ENDING.sub("", name).lower().replace("-", "_")
    return next((role for role, names in _ROLES.items() if plain in names), None)


def _shape(graph: ModelProto, data: Path, named: Mapping[str, str]) -> _Shape:
    """Finds the role of every input; refuses a graph with one that is not a text encoder's."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs: dict[str, tuple[str, np.dtype[Any]]] = {}
    others: dict[str, np.dtype[Any]] = {}
    fixed: list[int | None] = [None, None]
    given = [value for value in graph.graph.input if value.name not in weights]
    if missing := set(named) - {value.name for value in given}:
        known = ", ".join(value.name for value in given)
        raise InputError(f"the graph has no input '{min(missing)}'", "--input", f"it has {known}")
    for value in given:
        kind, dims = value.type.tensor_type, value.type.tensor_type.shape.dim
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        role = named.get(value.name) or _role(value.name)
        if role is None and len(dims) == 1 and dtype.kind == "i":
            others[value.name] = dtype
            continue
        if role is None or role in inputs or len(dims) != 2:
            what = f"the graph's input '{value.name}' is not a text encoder's by its name"
            raise InputError(what, data, f"name its role with --input ROLE={value.name}")
        inputs[role] = (value.name, dtype)
        fixed = [dim.dim_value or known for dim, known in zip(dims, fixed, strict=True)]
    if "ids" not in inputs:
        raise InputError("the graph takes no token ids", data, "name them with --input ids=NAME")
    return _Shape(inputs, others, *fixed)


Rows = Sequence[Encoded]


def _of_equal_length(rows: Rows) -> list[tuple[Rows, int]]:
    """Every example without padding; examples of the same length share a batch."""
    return [
        (group[start : start + _BATCH], length)
        for length, group in ((length, list(group)) for length, group in groupby(rows, key=len))
        for start in range(0, len(group), _BATCH)
    ]


def _padded(rows: Rows) -> tuple[Rows, int]:
    """Some examples from the shortest to the longest, padded to the longest."""
    chosen = np.linspace(0, len(rows) - 1, min(_PADDED, len(rows)))
    return [rows[int(index)] for index in chosen], len(rows[-1])


def _full_row(reader: Tokenizer, examples: Examples, rows: Rows, limit: int) -> Encoded:
    """The examples one after the other, as many as fill a row of the greatest length."""
    repeats = 1 + limit // max(1, sum(len(row) - 2 for row in rows))
    return reader.encode([" ".join(list(examples.texts) * repeats)])[0]


def _in_batches(rows: Rows, size: int | None) -> list[Rows]:
    """Rows in batches of the one size that the graph takes; the last row fills the last batch."""
    if size is None:
        return [rows]
    parts = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    return [part + part[-1:] * (size - len(part)) for part in parts]


def _feed(rows: Rows, length: int, shape: _Shape, pad_id: int) -> tuple[Feed, np.ndarray]:
    """The tensors for some examples, padded to `length`, and which of their tokens are not padding."""
    size = (len(rows), length)
    padded = pad_batch(rows, pad_id, size)
    values = {
        "ids": padded["input_ids"],
        "mask": padded["attention_mask"],
        "types": padded["token_type_ids"],
        "positions": np.broadcast_to(np.arange(length), size),
    }
    feed = {name: values[role].astype(kind) for role, (name, kind) in shape.inputs.items()}
    feed.update({name: np.arange(len(rows)).astype(kind) for name, kind in shape.others.items()})
    return feed, values["mask"].astype(bool)
