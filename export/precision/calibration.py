"""Calibration: real examples as a graph's inputs, on which ranges and errors are measured.

Padding and length matter in service, so the inputs vary them: each example without padding, examples padded
to the longest of them, and rows of the model's greatest length, one full and one nearly all padding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.io import sha256_file
from bertmp.core.progress import Notice, ProgressCallback, null_progress
from bertmp.data.readers import Columns, Examples, read_examples
from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.export.graph.ort_sessions import Feed
from bertmp.export.precision.graph_inputs import LONGEST, Rows, graph_inputs
from bertmp.export.precision.graph_tables import Tables, greatest_length_of

EXAMPLES = 64
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_PADDED = 4
_LEAST_SHARE = 0.9
"""A graph's table may have more rows than its tokenizer has tokens, to a round number; not many more."""
_BATCH = 16


@dataclass(frozen=True)
class Calibration:
    """Examples as a graph's inputs.

    Attributes:
        feeds: input name → array `[batch, length]`, batch after batch.
        masks: for every feed, which tokens are not padding, BOOL `[batch, length]`.
        file: the file of examples.
        sha256: of that file.
        texts: how many examples of it are used.
        source: `calibration`, or `vocabulary` where the examples were made from the vocabulary in `file`.
        error_feeds: errors are measured on this many of the first feeds; None for all. The last, one example
            in a row of nearly all padding, gives ranges alone: its answer is that of the example.
    """

    feeds: Sequence[Feed]
    masks: Sequence[np.ndarray]
    file: str
    sha256: str
    texts: int
    source: Literal["calibration", "vocabulary"] = "calibration"
    error_feeds: int | None = None

    @property
    def fp32_feeds(self) -> list[Feed]:
        """The feeds with 16-bit inputs as FP32: as the emulation of a mixed-precision graph takes them."""
        return [
            {name: array.astype(np.float32) if _is_low(array) else array for name, array in feed.items()}
            for feed in self.feeds
        ]

    def shortest(self, tokens: int) -> list[int]:
        """The numbers of small feeds with about that many tokens: one that has them, or several."""
        sizes = [mask.size for mask in self.masks]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        alone = [number for number in order if tokens <= sizes[number] <= 2 * tokens]
        if alone:
            return alone[:1]
        chosen: list[int] = []
        for number in order:
            if sum(sizes[each] for each in chosen) >= tokens:
                break
            chosen.append(number)
        return chosen


def _is_low(array: np.ndarray) -> bool:
    return array.dtype.itemsize == 2 and array.dtype.kind in "fV"


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
        names: see `graph_inputs`.
        texts: the most examples, drawn with `seed`; the shortest and the longest are among them.
        progress: told how the file was read, where that is not obvious.

    Raises:
        InputError: the file cannot be read or is empty, the folder has no tokenizer, or the graph has
            an input that is not a text encoder's.
    """
    examples = _sample(read_examples(Path(data), columns, progress=progress), texts, seed)
    inputs = graph_inputs(graph, data, names)
    longest = greatest_length_of(graph, inputs, Path(tokenizer))
    limit = longest or LONGEST
    reader = read_tokenizer(Path(tokenizer), limit)
    words = Tables(graph, inputs).words
    if reader.vocabulary_size < _LEAST_SHARE * words:
        known = f"the tokenizer of {tokenizer} has {reader.vocabulary_size} tokens"
        progress(Notice(f"{known}, the graph's table {words} rows: is it the graph's own?"))
    rows = sorted(reader.encode(examples.texts, examples.pairs), key=len)
    batches = [*_of_equal_length(rows), _padded(rows)]
    if longest:
        batches.append(([_full_row(reader, examples, rows, limit)], limit))
    feeds, masks = inputs.feeds(batches, reader.pad_id)
    for_errors = len(feeds)
    if longest:
        padded, kept = inputs.feeds([(rows[:1], limit)], reader.pad_id)
        feeds, masks = feeds + padded, masks + kept
    file, sha256 = str(data), sha256_file(Path(data))
    return Calibration(feeds, masks, file, sha256, len(examples), error_feeds=for_errors)


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


def read_tokenizer(folder: Path, limit: int) -> Tokenizer:
    """The tokenizer of a graph's folder, whichever model it is for.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        what = "no tokenizer for the examples: neither tokenizer.json nor vocab.txt"
        raise InputError(what, folder, "give its folder with --tokenizer")
    return Tokenizer.load_any(folder, limit)


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
