"""The gradients of one step, accumulated over its micro-batches and processes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bertmp.data.batches import shuffled_batches, split_batch
from bertmp.model.packed import Batch
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.distributed import DistributedContext
from bertmp.training.distributed.parallelize import Objective
from bertmp.training.tasks import TrainingData


@dataclass(frozen=True)
class LossNormalizer:
    """What the loss of a step is divided by, over all processes; known before the forward pass.

    Attributes:
        counts: FP32 `[losses]`, the number of terms of each part of the loss, at least 1.
        tokens: in the step.
    """

    counts: Tensor
    tokens: int


@dataclass(frozen=True)
class GradientAccumulator:
    """Computes the gradients of a step; every call gives the same result.

    Attributes:
        objective: the head and its loss.
        module: the same, as `DistributedContext.wrap` wraps it.
    """

    objective: Objective
    module: nn.Module
    steps: StepDataset
    context: DistributedContext
    policy: PrecisionPolicy
    seed: int

    def normalizer(self, rank_batch: RankBatch) -> LossNormalizer:
        """Counts the terms of a step's loss."""
        parts = len(self.objective.head.losses)
        total = torch.zeros(parts + 1, dtype=torch.float64)
        for batch in rank_batch.micro_batches:
            if batch is not None:
                total += torch.tensor([*self.objective.loss_counts(batch), batch.tokens], dtype=total.dtype)
        total = self.context.sum(total)
        counts = total[:-1].clamp_min(1.0).float().to(self.context.device)
        return LossNormalizer(counts, int(total[-1]))

    def accumulate(
        self,
        rank_batch: RankBatch,
        normalizer: LossNormalizer,
        step: int,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> float:
        """Adds the gradients of the scaled loss to the parameters'; returns the loss, over all processes."""
        sums = torch.zeros_like(normalizer.counts)
        for number, batch in enumerate(rank_batch.micro_batches):
            last = number == len(rank_batch.micro_batches) - 1
            with self.context.gradient_sync(self.module, last):
                sums += self._backward(batch, normalizer.counts, step, number, scale)
        return float((self.context.sum(sums) / normalizer.counts).sum())

    def _backward(
        self, batch: Batch | None, counts: Tensor, step: int, number: int, scale: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One micro-batch's gradients; returns its summed losses, `[losses]`."""
        # Dropout depends on seed, step, micro-batch and rank alone, so that a resumed run draws the same.
        torch.manual_seed(_mixed(self.seed, step, number, self.context.data_rank))
        weight = 1.0
        if batch is None:
            # A short batch has no examples for this process, which still joins the reduction, with weight 0.
            batch, weight = self.steps.data.batch(self.steps.any_row, 0), 0.0
        with self.policy.autocast():
            sums = self.module(batch.to(self.context.device))
        scale((sums / counts).sum() * (weight * self.context.data_size)).backward()
        return sums.detach() * weight


def _mixed(*numbers: int) -> int:
    """One seed of 63 bits from several numbers, each of any size."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
