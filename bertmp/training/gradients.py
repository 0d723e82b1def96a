"""The gradients of one step, accumulated over its micro-batches and processes."""

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
