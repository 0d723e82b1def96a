"""The texts on which a converted graph is held against the FP32 graph: real questions, and the extremes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

BATCH = 16


def pad(rows: Sequence[Sequence[int]], pad_id: int, length: int = 0) -> tuple[np.ndarray, ...]:
    """Token ids to ids, mask and types, INT64 `[batch, length]`; at least as long as the longest row."""
    shape = (len(rows), max(length, *map(len, rows)))
    ids, mask, types = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask, types


def feeds(folder: Path, data: Path, stride: int, inputs: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Batches for a graph.

    Every `stride`-th text from short to long, 16 a batch, then the extremes: the shortest alone, the shortest
    padded to the model's positions, many texts joined to as many tokens, and those two in one batch.

    Args:
        folder: has the tokenizer and `config.json`.
        data: `label<TAB>text`.
        inputs: the names of the ids, the mask and the types.
    """
    from bertmp.core.io import read_json
    from bertmp.data.readers import read_examples
    from bertmp.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder, read_json(folder / "config.json")["max_position_embeddings"])
    texts = read_examples(data).texts
    rows = sorted((row.input_ids for row in tokenizer.encode(texts[::stride])), key=len)
    longest = tokenizer.encode([" ".join(texts)])[0].input_ids  # cut at the model's positions
    plans = [(rows[start : start + BATCH], 0) for start in range(0, len(rows), BATCH)]
    plans += [(rows[:1], 0), (rows[:1], len(longest)), ([longest], 0), ([rows[0], longest], 0)]
    for batch, length in plans:
        yield dict(zip(inputs, pad(batch, tokenizer.pad_id, length), strict=True))
