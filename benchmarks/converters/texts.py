"""The texts on which a converted graph is held against the FP32 graph: real questions, and the extremes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

BATCH = 16


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
    from bertmp.data.batches import pad_batch
    from bertmp.data.readers import read_examples
    from bertmp.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder, read_json(folder / "config.json")["max_position_embeddings"])
    texts = read_examples(data).texts
    rows = sorted(tokenizer.encode(texts[::stride]), key=len)
    longest = tokenizer.encode([" ".join(texts)])[0]  # truncated at the model's positions
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    padded = [pad_batch(batch, tokenizer.pad_id) for batch in (*batches, rows[:1])]
    padded.append(pad_batch(rows[:1], tokenizer.pad_id, (1, len(longest))))
    padded += [pad_batch(batch, tokenizer.pad_id) for batch in ([longest], [rows[0], longest])]
    for batch in padded:
        yield dict(zip(inputs, batch.values(), strict=True))
