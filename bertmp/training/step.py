"""The parts of a step: its batches, its gradients, the update and its learning rate.

Gradients are accumulated over micro-batches and processes. The optimizers are AdamW and LAMB, the schedule is
linear warm-up and decay (Devlin et al. 2019, appendix A.2).
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bertmp.data.batches import shuffled_batches, split_batch
from bertmp.model.heads import Head
from bertmp.model.packed import Batch
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.distributed import DistributedContext
from bertmp.training.distributed.sharding import Objective
from bertmp.training.tasks import TrainingData
from bertmp.training.train_options import TrainOptions

Scale = Callable[[Tensor], Tensor]
"""Multiplies a loss."""


def unscaled(loss: Tensor) -> Tensor:
    """The loss as it is."""
    return loss


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
        total = torch.zeros(len(self.objective.head.losses) + 1, dtype=torch.float64)
        for batch in rank_batch.micro_batches:
            if batch is not None:
                total += torch.tensor([*self.objective.loss_counts(batch), batch.tokens], dtype=total.dtype)
        total = self.context.sum(total)
        counts = total[:-1].clamp_min(1.0).float().to(self.context.device)
        return LossNormalizer(counts, int(total[-1]))

    def accumulate(self, rank_batch: RankBatch, normalizer: LossNormalizer, scale: Scale = unscaled) -> float:
        """Adds the gradients of the scaled loss to the parameters'; returns the loss, over all processes."""
        sums = torch.zeros_like(normalizer.counts)
        for number, batch in enumerate(rank_batch.micro_batches):
            last = number == len(rank_batch.micro_batches) - 1
            with self.context.gradient_sync(self.module, last):
                sums += self._backward(batch, normalizer.counts, (rank_batch.step, number), scale)
        return float((self.context.sum(sums) / normalizer.counts).sum())

    def _backward(self, batch: Batch | None, counts: Tensor, place: tuple[int, int], scale: Scale) -> Tensor:
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
        return iter(DataLoader(self, None, sampler=order, num_workers=workers, worker_init_fn=quiet))


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; only the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_BLOCK = re.compile(r"^bert\.encoder\.layer\.(\d+)\.")


def make_optimizer(model: Head, settings: TrainOptions) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or LAMB over FP32 master weights.

    Biases and LayerNorms are not decayed. With `layerwise_lr_decay` below 1, each block's learning rate is
    that factor times the rate of the block above it; the embeddings have the lowest.
    """
    depth = model.config.num_hidden_layers
    members: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.endswith(".bias") or ".LayerNorm." in name
            rate = settings.layerwise_lr_decay ** _below_top(name, depth)
            mesh = getattr(parameter, "device_mesh", None)  # of a DTensor: an update takes one mesh at a time
            key = (0.0 if plain else settings.weight_decay, rate, mesh)
            members.setdefault(key, []).append(parameter)
    # `rate` is what a group's learning rate is multiplied with.
    groups = [{"params": own, "weight_decay": key[0], "rate": key[1]} for key, own in members.items()]
    if settings.optimizer == "lamb":
        return Lamb(groups, lr=settings.learning_rate)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _below_top(name: str, depth: int) -> int:
    """How many blocks lie above a parameter: 0 for the head and pooler, 1 for the last block, …"""
    if name.startswith("bert.embeddings."):
        return depth + 1
    block = _BLOCK.match(name)
    return depth - int(block[1]) if block else 0


def learning_rate(step: int, total: int, settings: TrainOptions) -> float:
    """The rate of a step counted from 0: linear from 0 to the peak, then linear to 0 at `total`."""
    warm = round(settings.warmup_ratio * total)
    fraction = (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)
    return settings.learning_rate * fraction


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


class Lamb(torch.optim.Optimizer):
    """LAMB: layer-wise adaptive moments for large batches (You et al. 2020, algorithm 2).

    Adam's direction plus decoupled weight decay, its length scaled by ‖weights‖ / ‖direction‖ per tensor.

    Tensors in groups without weight decay (biases, LayerNorms) take the direction as it is, as the
    reference recipes do. State per parameter, in its own type: `exp_avg`, `exp_avg_sq`; and `step`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        options: `betas`, the decay rates of the two moments; `eps`, added to the root of the second moment;
            `weight_decay`, decoupled.
    """

    def __init__(self, params: Iterable[Any], lr: float, **options: Any) -> None:
        defaults = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
        super().__init__(params, {**defaults, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; takes no closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        number = int(state["step"])
        first, second = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (square / (1 - second**number)).sqrt_().add_(group["eps"])
        direction = mean.div(root).div_(1 - first**number)
        trust: float | Tensor = 1.0
        if group["weight_decay"]:
            direction.add_(parameter, alpha=group["weight_decay"])
            size, length = parameter.norm(), direction.norm()
            # A tensor of zeros has no norm to scale by.
            trust = torch.where((size > 0) & (length > 0), size / length, torch.ones_like(size))
        parameter.sub_(direction * trust, alpha=group["lr"])
