"""States in one form for every layout: plain whole tensors by the parameters' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor, keep: bool = True) -> Tensor:
    """All of a tensor on the CPU, from the pieces in all processes, which call this at the same moment.

    A tensor that lies on the CPU already is no copy, which would take three times the weights' memory for a
    state: it is to be written or read before the next step changes it.

    Args:
        keep: whether this process needs it; an empty tensor is returned where not.
    """
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu") if keep else torch.empty(0)


def pieces_like(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor spread as `like` is, on its device, without any exchange."""
    full = full.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    return full


def weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """A model's whole weights."""
    if isinstance(model, FSDPModule):
        model.reshard()
    return {name: whole(tensor, keep) for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts whole weights into a model in any layout."""
    own = model.state_dict()
    model.load_state_dict({name: pieces_like(tensor, own[name]) for name, tensor in state.items()})


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool = True
) -> dict[str, dict[str, Any]]:
    """The optimizer's state of each parameter, by the parameter's name; rates and decays are settings."""
    state: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            entries = optimizer.state[parameter].items()
            state[name] = {key: whole(v, keep) if isinstance(v, Tensor) else v for key, v in entries}
    return state


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]
) -> None:
    """Takes over what `optimizer_state` gave, in any layout."""
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
    """An entry of a parameter's state: spread like the parameter where it has its shape, else a counter."""
    return pieces_like(value, parameter) if value.shape == parameter.shape else value.to(counters, copy=True)
