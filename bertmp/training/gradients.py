"""The batches of a step, and its gradients: accumulated over micro-batches and processes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bertmp.data.batches import shuffled_batches, split_batch
from bertmp.model.packed import Batch
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.distributed import DistributedContext
from bertmp.training.distributed.sharding import Objective
from bertmp.training.tasks import TrainingData
from bertmp.training.train_options import TrainOptions


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
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> float:
        """Adds the gradients of the scaled loss to the parameters'; returns the loss, over all processes."""
        sums = torch.zeros_like(normalizer.counts)
        for number, batch in enumerate(rank_batch.micro_batches):
            last = number == len(rank_batch.micro_batches) - 1
            with self.context.gradient_sync(self.module, last):
                sums += self._backward(batch, normalizer.counts, (rank_batch.step, number), scale)
        return float((self.context.sum(sums) / normalizer.counts).sum())

    def _backward(
        self, batch: Batch | None, counts: Tensor, place: tuple[int, int], scale: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The gradients of a micro-batch of a step; returns its summed losses, `[losses]`."""
        # Dropout depends on seed, step, micro-batch and rank alone, so that a resumed run draws the same.
        entropy = np.random.SeedSequence((self.steps.seed, *place, self.context.data_rank))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))  # of 63 bits
        weight = 1.0
        if batch is None:
            # A short batch has no examples for this process, which still joins the reduction, with weight 0.
            batch, weight = self.steps.data.batch(np.zeros(1, dtype=np.int64), 0), 0.0
        with self.policy.autocast():
            sums = self.module(batch.to(self.context.device))
        scale((sums / counts).sum() * (weight * self.context.data_size)).backward()
        return sums.detach() * weight


@dataclass(frozen=True)
class RankBatch:
    """One process's part of a step.

    Attributes:
        step: its number, counted from 0.
        micro_batches: accumulated into one step; None where a short batch has no examples for this process.
        examples: in the step, over all processes.
    """

    step: int
    micro_batches: tuple[Batch | None, ...]
    examples: int


class StepDataset(Dataset[RankBatch]):
    """Item `n` is this process's part of step `n`, a pure function of data, seed and `n`.

    Args:
        settings: give the batch size, the micro-batches and the seed.
        rank, size: this process among the data-parallel ones.
    """

    def __init__(self, data: TrainingData, settings: TrainOptions, rank: int, size: int) -> None:
        self.data, self.seed, self.rank, self.size = data, settings.seed, rank, size
        self.batch_size, self.accumulate = settings.batch_size, settings.gradient_accumulation_steps
        self.per_epoch = math.ceil(len(data) / settings.batch_size)
        self._epoch, self._batches = -1, list[np.ndarray]()

    def __getitem__(self, step: int) -> RankBatch:
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._batches = shuffled_batches(self.data.lengths(epoch), self.batch_size, self.seed, epoch)
            self._epoch = epoch
        rows = self._batches[number]
        own = split_batch(rows, self.size)[self.rank]
        micro = split_batch(own, self.accumulate)
        batches = tuple(self.data.batch(part, epoch) if len(part) else None for part in micro)
        return RankBatch(step, batches, len(rows))

    def load(self, first: int, total: int, workers: int) -> Iterator[RankBatch]:
        """Steps `first` to `total - 1` in order, prepared by `workers` processes ahead of time."""
        order, quiet = range(first, total), _ignore_interrupts
        return iter(
            DataLoader(self, batch_size=None, sampler=order, num_workers=workers, worker_init_fn=quiet)
        )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; only the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
