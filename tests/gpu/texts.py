"""Token ids without text: batches that the tests lay out in more than one way."""

from __future__ import annotations

import numpy as np

from bertmp.data.tokenizer import Encoded
from bertmp.model.checkpoint import LoadedCheckpoint
from bertmp.training.tasks.task import Encodings

SIZES = (40, 3, 17, 1, 40, 64, 9, 28, 5, 33, 2, 50, 12, 12, 7, 21)


def labelled(loaded: LoadedCheckpoint) -> Encodings:
    """Texts of very different lengths with labels of the checkpoint."""
    random = np.random.default_rng(0)
    rows = [
        Encoded(random.integers(5, loaded.config.vocab_size, size).tolist(), [0] * size, False)
        for size in SIZES
    ]
    return Encodings(rows, {"labels": random.integers(len(loaded.labels), size=len(rows))})
