"""Texts of random tokens, for machines without data: as much work as real ones, and nothing to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bertmp.model.batch import Batch
from bertmp.model.config import BertConfig

MASKED = 0.15


@dataclass(frozen=True)
class RandomTexts:
    """Pre-training samples; a training run reads them like any other data.

    Attributes:
        config: of the model that is to read them.
        sizes: tokens of each text.
    """

    config: BertConfig
    sizes: Sequence[int]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.sizes)

    def lengths(self, epoch: int) -> Sequence[int]:
        return self.sizes

    def masked(self, length: int) -> int:
        """Masked tokens of a text."""
        return max(1, round(MASKED * length))

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        """The texts of these rows, the same each time, with the targets of `PreTraining`."""
        random = np.random.default_rng([epoch, *rows.tolist()])
        sizes = [self.sizes[row] for row in rows]
        starts = np.cumsum([0, *sizes[:-1]])
        positions = np.concatenate(
            [
                start + np.sort(random.permutation(size)[: self.masked(size)])
                for start, size in zip(starts, sizes, strict=True)
            ]
        )
        segments = np.concatenate([np.arange(size) >= size // 2 for size in sizes]).astype(np.int64)
        tokens, vocabulary = sum(sizes), self.config.vocab_size
        targets = {
            "masked": positions,
            "masked_labels": random.integers(vocabulary, size=len(positions)),
            "next_sentence": random.integers(2, size=len(rows)),
        }
        return Batch(
            torch.from_numpy(random.integers(vocabulary, size=tokens)),
            torch.from_numpy(segments),
            tuple(sizes),
            {name: torch.from_numpy(values) for name, values in targets.items()},
        )
