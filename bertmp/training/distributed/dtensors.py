"""Tensors that may be spread over processes (DTensor): gradients of a step, and the state of a run.

A state has plain tensors by parameter name, the same for every layout of the processes.
`torch.distributed.checkpoint.state_dict` is not used: it steps an optimizer without state to get one, and a
state saved before the first step has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from bertmp.training.cpu_tuning import word_embeddings


def full_tensor(tensor: Tensor, keep: bool = True) -> Tensor:
    """The full tensor on the CPU, from the shards of all processes, which call this at the same time.

    A tensor on the CPU is not copied, which would take three times the memory of the weights for a state:
    write or read it before the next step changes it.

    Args:
        keep: whether this process needs it; an empty tensor is returned where not.
    """
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu") if keep else torch.empty(0)


def distribute_like(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded like `like` and on its device, without communication."""
    full = full.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    return full


def full_weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The full weights of a model."""
    if isinstance(model, FSDPModule):
        model.reshard()
    return {name: full_tensor(tensor, keep) for name, tensor in model.state_dict().items()}


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """The full weights, and the optimizer's state of each parameter, by the parameter's name.

    Called by all processes; the tensors are empty unless `keep`. Rates and decays are settings.
    """
    moments: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            entries = optimizer.state[parameter].items()
            moments[name] = {key: full_tensor(v, keep) if isinstance(v, Tensor) else v for key, v in entries}
    return {"model": full_weights(model, keep), "optimizer": moments}


def load_full_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads what `full_state` returned, under this or another layout."""
    own, moments = model.state_dict(), state["optimizer"]
    model.load_state_dict({name: distribute_like(full, own[name]) for name, full in state["model"].items()})
    # Fused updates count their steps on the device, the others on the CPU.
    counters = next(model.parameters()).device if optimizer.defaults.get("fused") else torch.device("cpu")

    def restored(value: Any, parameter: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.shape == parameter.shape:
            return distribute_like(value, parameter)
        return value.to(counters, copy=True)  # a step counter

    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in moments:
            entries = moments[name].items()
            optimizer.state[parameter] = {key: restored(value, parameter) for key, value in entries}


def local_tensor(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds; shares its storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_gradients(module: nn.Module, limit: float) -> float:
    """Clips all gradients to an L2 norm of `limit`, in place (Pascanu et al. 2013).

    `torch.nn.utils.clip_grad_norm_` takes no tensors from different meshes. Of a word embedding's gradient
    only the rows that were looked up are read and scaled.

    Returns:
        The norm before clipping, of the full gradient over all shards in all processes.
    """
    rows = {id(each.weight): each.rows() for each in word_embeddings(module)}
    gradients = [(each.grad, rows.get(id(each))) for each in module.parameters() if each.grad is not None]
    nonzero = [local_tensor(grad) if index is None else grad[index] for grad, index in gradients]
    norm = _total_norm([grad for grad, _ in gradients], nonzero)
    if float(norm) > limit:
        torch._foreach_mul_(nonzero, limit / (norm + 1e-6))
        for (grad, index), values in zip(gradients, nonzero, strict=True):
            if index is not None:
                grad.index_copy_(0, index, values)
    return float(norm)


def _total_norm(gradients: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients, a scalar; `values` are their elements in this process."""
    groups: dict[Any, list[Tensor]] = {}
    for gradient, local in zip(gradients, values, strict=True):
        groups.setdefault(_sharded_dims(gradient), []).append(local)
    squares = []
    for (mesh, dims), members in groups.items():
        square = get_total_norm(members).double() ** 2  # exact: a float's square fits in a double
        for dim in dims:
            dist.all_reduce(square, group=mesh.get_group(dim))
        squares.append(square)
    return torch.stack(squares).sum().sqrt().float()


def _sharded_dims(tensor: Tensor) -> tuple[Any, tuple[int, ...]]:
    """The mesh of a tensor and the mesh dimensions over which it is sharded."""
    if not isinstance(tensor, DTensor):
        return None, ()
    return tensor.device_mesh, tuple(i for i, p in enumerate(tensor.placements) if not p.is_replicate())


def split_groups_by_mesh(optimizer: torch.optim.Optimizer) -> None:
    """Splits parameter groups whose tensors lie on different meshes: an update takes one mesh at a time."""
    split: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        meshes: dict[Any, list[Tensor]] = {}
        for parameter in group["params"]:
            meshes.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
        split += [{**group, "params": parameters} for parameters in meshes.values()]
    optimizer.param_groups[:] = split


class ShardedGradScaler(torch.amp.GradScaler):
    """torch's GradScaler for sharded gradients: an overflow in one process is one in all."""

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        shards = [local_tensor(each.grad) for each in parameters if each.grad is not None]
        torch._amp_foreach_non_finite_check_and_unscale_(shards, found_inf, inv_scale)
        dist.all_reduce(found_inf, op=dist.ReduceOp.MAX)
        return {found_inf.device: found_inf}
