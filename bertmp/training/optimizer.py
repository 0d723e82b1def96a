"""AdamW and LAMB, and the schedule: linear warm-up and decay (Devlin et al. 2019, appendix A.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bertmp.model.heads import Head
from bertmp.training.train_options import TrainOptions

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
