"""LAMB: layer-wise adaptive moments for large batches (You et al. 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Adam's direction plus decoupled weight decay, its length scaled by ‖weights‖ / ‖direction‖ per tensor.

    Tensors in groups without weight decay (biases, LayerNorms) take the direction as it is, as the
    reference recipes do. State per parameter, in its own type: `exp_avg`, `exp_avg_sq`; and `step`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
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
            # A tensor of zeros has no scale of its own to keep to.
            trust = torch.where((size > 0) & (length > 0), size / length, torch.ones_like(size))
        parameter.sub_(direction * trust, alpha=group["lr"])
