"""One step's gradients, from however many micro-batches and processes its batch is dealt out to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bertmp.model.batch import Batch
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.distributed import DistributedContext
from bertmp.training.objective import Objective
from bertmp.training.steps import RankBatch, StepDataset


@dataclass(frozen=True)
class LossNormalizer:
    """What a step consists of, over all processes; known before its forward pass.

    Attributes:
        counts: FP32 `[losses]`, the terms of each of the loss's parts, at least 1.
        tokens: how many are read.
    """

    counts: Tensor
    tokens: int


@dataclass(frozen=True)
class GradientAccumulator:
    """Computes them, as often as asked, the same each time.

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
        """Counts a step's terms."""
        parts = len(self.objective.head.losses)
        total = torch.zeros(parts + 1, dtype=torch.float64)
        for batch in rank_batch.micro_batches:
            if batch is not None:
                total += torch.tensor([*self.objective.counts(batch), batch.tokens], dtype=total.dtype)
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
        # Dropout depends on seed, step and place alone, so that a resumed run draws what the first one drew.
        torch.manual_seed(_mixed(self.seed, step, number, self.context.data_rank))
        weight = 1.0
        if batch is None:
            # A short batch left this process nothing: it still takes part in the exchange, with no weight.
            batch, weight = self.steps.data.batch(self.steps.any_row, 0), 0.0
        with self.policy.autocast():
            sums = self.module(batch.to(self.context.device))
        scale((sums / counts).sum() * (weight * self.context.data_size)).backward()
        return sums.detach() * weight


def _mixed(*numbers: int) -> int:
    """One seed of 63 bits from several numbers, each of any size."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
