"""A dataset whose items are the steps of a run, so that DataLoader workers can prepare them."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import DataLoader, Dataset

from bertmp.data.batches import shuffled_batches, split_batch
from bertmp.model.batch import Batch
from bertmp.training.tasks import TrainingData


@dataclass(frozen=True)
class RankBatch:
    """One process's part of a step.

    Attributes:
        micro_batches: accumulated into one step; None where a short batch has no examples for this process.
        examples: in the step, over all processes.
    """

    micro_batches: tuple[Batch | None, ...]
    examples: int


class StepDataset(Dataset[RankBatch]):
    """Item `n` is this process's part of step `n`, a pure function of data, seed and `n`.

    Args:
        batch_size: examples per step, over all processes and micro-batches.
        accumulate: micro-batches per step and process.
        rank, size: this process among the data-parallel ones.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.accumulate, self.rank, self.size = accumulate, rank, size
        self.per_epoch = math.ceil(len(data) / batch_size)
        self._batches = lru_cache(maxsize=2)(self._epoch)

    @property
    def any_row(self) -> np.ndarray:
        """Some example, INT64 `[1]`."""
        return np.zeros(1, dtype=np.int64)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        return shuffled_batches(self.data.lengths(epoch), self.batch_size, self.seed, epoch)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_batches"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._batches = lru_cache(maxsize=2)(self._epoch)

    def __getitem__(self, step: int) -> RankBatch:
        epoch, number = divmod(step, self.per_epoch)
        rows = self._batches(epoch)[number]
        own = split_batch(rows, self.size)[self.rank]
        micro = split_batch(own, self.accumulate)
        batches = tuple(self.data.batch(part, epoch) if len(part) else None for part in micro)
        return RankBatch(batches, len(rows))

    def load(self, first: int, total: int, workers: int) -> Iterator[RankBatch]:
        """Steps `first` to `total - 1` in order, prepared by `workers` processes ahead of time."""
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=range(first, total),
                num_workers=workers,
                worker_init_fn=_ignore_interrupts,
            )
        )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; only the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
