"""Inputs made from the vocabulary, for graphs that nobody gives examples for.

Random tokens are no text, but they go through every layer: what overflows for a weight's sake overflows on
them, too. They are few, so that a conversion stays short.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto

from bertmp.core.errors import InputError
from bertmp.core.io import sha256_file
from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.export.graph.nodes import MOVING_OPS
from bertmp.export.precision.calibration import TOKENIZER_FILES, Calibration, read_tokenizer
from bertmp.export.precision.graph_inputs import (
    LONGEST,
    GraphInputs,
    Rows,
    UnknownInput,
    graph_inputs,
    greatest_length,
)

LENGTHS = (8, 32, 128)
"""Tokens in a row; one more row has the model's greatest length."""

_BATCH_TOKENS = 64
_PADDED = 4
_UNKNOWN_LIMIT = 512
_FEWEST_POSITIONS = 16
"""A table of fewer rows holds no positions."""
_PADDING_POSITIONS = 2
"""RoBERTa counts the tokens before each; its first positions are padding's."""


@dataclass(frozen=True)
class _Vocabulary:
    """What rows are made of.

    Attributes:
        ids: token ids that stand for text.
        pad_id: id of the padding token.
        tokenizer: frames rows with special tokens; None where there is none.
        two_types: whether the second half of some rows may have the token type 1.
        source, sha256: the tokenizer's file by its name, or the table of embeddings.
    """

    ids: Sequence[int]
    pad_id: int
    tokenizer: Tokenizer | None
    two_types: bool
    source: str
    sha256: str


def made_up_inputs(
    graph: ModelProto, tokenizer: Path, names: Sequence[str] = (), *, seed: int = 0
) -> Calibration:
    """A few rows of random tokens, of several lengths, with special tokens and padding; always the same.

    Args:
        graph: as in `graph_inputs`.
        tokenizer: a folder; where it has no tokenizer that can be read, ids are drawn from the graph's table
            of embeddings.
        names: see `graph_inputs`.

    Raises:
        UnknownInput: an input has no role that its name tells, or the vocabulary's size is not known.
        InputError: `names` are not roles and inputs.
    """
    inputs = graph_inputs(graph, "inputs made from the vocabulary", names)
    tables = _Tables(graph, inputs)
    limit = min(
        inputs.length or LONGEST, greatest_length(tokenizer) or tables.positions or _UNKNOWN_LIMIT, LONGEST
    )
    vocabulary = _vocabulary(tokenizer, tables, limit)
    draw = random.Random(seed)

    def row(length: int, pair: bool = False) -> Encoded:
        return _row(vocabulary, length, pair and vocabulary.two_types, draw)

    lengths = sorted({*(length for length in LENGTHS if length < limit), limit})
    batches: list[tuple[Rows, int]] = [
        ([row(length, bool(number % 2)) for number in range(max(1, _BATCH_TOKENS // length))], length)
        for length in lengths
    ]
    padded = min(_BATCH_TOKENS, limit)
    batches.append(([row(max(1, padded * part // _PADDED)) for part in range(1, _PADDED + 1)], padded))
    feeds, masks = inputs.feeds(batches, vocabulary.pad_id)
    made = sum(len(rows) for rows, _ in batches)
    return Calibration(feeds, masks, vocabulary.source, vocabulary.sha256, made, "vocabulary")


def made_up_note(made_up: Calibration) -> str:
    """What to tell a user who gave no examples."""
    return (
        f"ranges: measured on {made_up.texts} inputs made from the vocabulary; "
        "--calibration FILE for your texts"
    )


def _row(vocabulary: _Vocabulary, length: int, pair: bool, draw: random.Random) -> Encoded:
    """One row of at most `length` tokens, special ones included."""
    halves = [length - length // 2, length // 2] if pair and length > 4 else [length]
    pieces = [draw.choices(vocabulary.ids, k=size) for size in halves]
    if vocabulary.tokenizer is None:
        types = [kind for kind, piece in enumerate(pieces) for _ in piece]
        return Encoded([number for piece in pieces for number in piece], types, False)
    special = len(vocabulary.tokenizer.framed([[] for _ in pieces]))
    for piece in pieces:
        del piece[max(0, len(piece) - -(-special // len(pieces))) :]
    framed = vocabulary.tokenizer.framed(pieces)
    return Encoded(framed.input_ids[:length], framed.token_type_ids[:length], False)


def _vocabulary(folder: Path, tables: _Tables, limit: int) -> _Vocabulary:
    two_types = tables.types >= 2
    with suppress(InputError):  # the plan says which vocabulary it was
        tokenizer = read_tokenizer(folder, limit)
        ids = [number for number in tokenizer.word_ids if not tables.words or number < tables.words]
        file = next(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
        if ids:
            return _Vocabulary(ids, tokenizer.pad_id, tokenizer, two_types, file.name, sha256_file(file))
    if not tables.words:
        what = "the size of the vocabulary is not known: no tokenizer, and no table that token ids index"
        raise UnknownInput(what, folder, "give a tokenizer's folder with --tokenizer")
    # 0 is the padding's id in most vocabularies.
    return _Vocabulary(
        range(min(1, tables.words - 1), tables.words), 0, None, two_types, tables.words_name, ""
    )


class _Tables:
    """How many rows the graph's tables of embeddings have; 0 where there is none.

    Attributes:
        words, words_name: of the smallest table that token ids index.
        types: of the one that token types index.
        positions: of the one that neither indexes and that is as wide as the words' one, without those that
            stand for padding.
    """

    def __init__(self, graph: ModelProto, inputs: GraphInputs) -> None:
        self.words, self.types, self.positions, self.words_name = 0, 0, 0, ""
        role_of = {name: role for role, (name, _) in inputs.roles.items()}
        tables = list(_tables(graph))
        width = {size[1] for _, size, index in tables if role_of.get(index) == "ids"}
        for name, (rows, columns), index in tables:
            role = role_of.get(index)
            if role == "ids" and (not self.words or rows < self.words):
                self.words, self.words_name = rows, name
            elif role == "types":
                self.types = rows
            elif role in (None, "positions") and columns in width and rows >= _FEWEST_POSITIONS:
                counted = "CumSum" in _before(index, graph)
                self.positions = rows - _PADDING_POSITIONS if counted else rows


def _before(name: str, graph: ModelProto) -> set[str]:
    """The operators that a tensor is computed by."""
    writers = {output: node for node in graph.graph.node for output in node.output}
    operators, names, seen = set(), [name], set()
    while names:
        node = writers.get(names.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            operators.add(node.op_type)
            names += node.input
    return operators


def _tables(graph: ModelProto) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Two-dimensional weights that a Gather reads: name, size, and what its index was moved from."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    writers = {name: node for node in graph.graph.node for name in node.output}
    for node in graph.graph.node:
        if node.op_type == "Gather" and len(sizes.get(node.input[0], ())) == 2:
            rows, columns = sizes[node.input[0]]
            yield node.input[0], (rows, columns), _moved_from(node.input[1], writers)


def _moved_from(name: str, writers: Mapping[str, NodeProto]) -> str:
    """The tensor that moves and casts made this one from."""
    while name in writers and writers[name].op_type in (*MOVING_OPS, "Cast"):
        name = writers[name].input[0]
    return name
