"""Texts of random tokens, for machines without data: as much work as real ones, and little to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bertmp.model.config import BertConfig
from bertmp.model.packed import Batch

MASKED = 0.15


def masked(length: int) -> int:
    """Masked tokens of a text of this length."""
    return max(1, round(MASKED * length))


@dataclass(frozen=True)
class Text:
    """One sample.

    Attributes:
        ids, segments: INT64 `[length]`.
        positions, labels: INT64 `[masked]`, places in the text and what stood there.
        next_sentence: 0 or 1.
    """

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    next_sentence: int

    @classmethod
    def draw(cls, random: np.random.Generator, length: int, vocabulary: int) -> Text:
        """A text of `length` tokens."""
        return cls(
            random.integers(vocabulary, size=length),
            (np.arange(length) >= length // 2).astype(np.int64),
            np.sort(random.permutation(length)[: masked(length)]),
            random.integers(vocabulary, size=masked(length)),
            int(random.integers(2)),
        )


@dataclass(frozen=True)
class RandomTexts:
    """Pre-training samples, the same in every epoch; a training run reads them like any other data."""

    texts: Sequence[Text]
    truncated: int = 0

    @classmethod
    def of(cls, config: BertConfig, lengths: Sequence[int], seed: int = 0) -> RandomTexts:
        """A text of each length, for a model of this shape."""
        random = np.random.default_rng(seed)
        return cls([Text.draw(random, length, config.vocab_size) for length in lengths])

    def __len__(self) -> int:
        return len(self.texts)

    def lengths(self, epoch: int) -> Sequence[int]:
        return [len(text.ids) for text in self.texts]

    def batch(self, rows: np.ndarray, epoch: int) -> Batch:
        """The texts of these rows, with the targets of `PreTraining`."""
        texts = [self.texts[row] for row in rows]
        sizes = [len(text.ids) for text in texts]
        starts = np.cumsum([0, *sizes[:-1]])
        places = [start + text.positions for start, text in zip(starts, texts, strict=True)]
        targets = {
            "masked": np.concatenate(places),
            "masked_labels": np.concatenate([text.labels for text in texts]),
            "next_sentence": np.array([text.next_sentence for text in texts]),
        }
        return Batch(
            torch.from_numpy(np.concatenate([text.ids for text in texts])),
            torch.from_numpy(np.concatenate([text.segments for text in texts])),
            tuple(sizes),
            {name: torch.from_numpy(values) for name, values in targets.items()},
        )
