"""Gradients that lie in pieces: their norm, their clipping, their check for overflow, their optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The piece of a tensor that this process holds; shares its storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scales gradients down to an L2 norm of at most `limit`; returns the norm before.

    The norm is that of the whole gradient, over all pieces in all processes; the arithmetic is that of
    `torch.nn.utils.clip_grad_norm_`, which takes no tensors from different meshes.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = _norm(gradients)
    pieces = [local(gradient) for gradient in gradients]
    if math.isfinite(limit):
        torch._foreach_mul_(pieces, (limit / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients, a scalar."""
    kinds: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(_spread(gradient), []).append(gradient)
    squares = []
    for (mesh, dimensions), members in kinds.items():
        square = torch.nn.utils.get_total_norm([local(member) for member in members]).double() ** 2
        for dimension in dimensions:
            dist.all_reduce(square, group=mesh.get_group(dimension))
        squares.append(square)
    return torch.stack(squares).sum().sqrt().float()


def _spread(tensor: Tensor) -> tuple[Any, tuple[int, ...]]:
    """The mesh that a tensor lies on and the dimensions along which its pieces differ."""
    if not isinstance(tensor, DTensor):
        return None, ()
    return tensor.device_mesh, tuple(i for i, p in enumerate(tensor.placements) if not p.is_replicate())


def one_mesh_a_group(optimizer: torch.optim.Optimizer) -> None:
    """Splits parameter groups whose tensors lie on different meshes: an update takes one mesh at a time."""
    groups = optimizer.param_groups
    split: list[dict[str, Any]] = []
    for group in groups:
        meshes: dict[Any, list[Tensor]] = {}
        for parameter in group["params"]:
            meshes.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
        split += [{**group, "params": parameters} for parameters in meshes.values()]
    groups[:] = split


class SharedGradScaler(torch.amp.GradScaler):
    """torch's GradScaler for gradients in pieces: an overflow in one process is one in all."""

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        pieces = [
            local(parameter.grad)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        torch._amp_foreach_non_finite_check_and_unscale_(pieces, found_inf, inv_scale)
        dist.all_reduce(found_inf, op=dist.ReduceOp.MAX)
        return {found_inf.device: found_inf}
