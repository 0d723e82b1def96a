"""Full state dictionaries: plain tensors by parameter name, the same for every layout of the processes.

`torch.distributed.checkpoint.state_dict` is not used: it steps an optimizer without state to get one, and a
state saved before the first step has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


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


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads full weights into a model in any layout."""
    own = model.state_dict()
    model.load_state_dict({name: distribute_like(tensor, own[name]) for name, tensor in state.items()})


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool = True
) -> dict[str, dict[str, Any]]:
    """The optimizer's state of each parameter, by the parameter's name; rates and decays are settings."""
    state: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            entries = optimizer.state[parameter].items()
            state[name] = {key: full_tensor(v, keep) if isinstance(v, Tensor) else v for key, v in entries}
    return state


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Loads what `optimizer_state` returned, in any layout."""
    # Fused updates count their steps on the device, the others on the CPU.
    counters = next(model.parameters()).device if optimizer.defaults.get("fused") else torch.device("cpu")
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in state:
            optimizer.state[parameter] = {
                key: _restored(value, parameter, counters) if isinstance(value, Tensor) else value
                for key, value in state[name].items()
            }


def _restored(value: Tensor, parameter: Tensor, counters: torch.device) -> Tensor:
    """An entry of a parameter's state: sharded like the parameter if of its shape, else a step counter."""
    return (
        distribute_like(value, parameter) if value.shape == parameter.shape else value.to(counters, copy=True)
    )
