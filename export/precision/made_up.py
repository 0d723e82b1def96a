"""Inputs made from the vocabulary, for graphs that nobody gives examples for.

Random tokens are no text, but they go through every layer: what overflows for a weight's sake overflows on
them, too. They are few, so that a conversion stays short.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.io import sha256_file
from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.export.precision.calibration import TOKENIZER_FILES, Calibration, read_tokenizer
from bertmp.export.precision.graph_inputs import Rows, UnknownInput, graph_inputs
from bertmp.export.precision.graph_tables import Tables, greatest_length_of

LENGTHS = (8, 32, 128)
"""Tokens in a row; one more row has the model's greatest length."""

_BATCH_TOKENS = 64
_PADDED = 4
_UNKNOWN_LIMIT = 512


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
    tables = Tables(graph, inputs)
    limit = greatest_length_of(graph, inputs, tokenizer) or _UNKNOWN_LIMIT
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


def _vocabulary(folder: Path, tables: Tables, limit: int) -> _Vocabulary:
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
