"""The optimizer and its schedule: linear warm-up and decay (Devlin et al. 2019, appendix A.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bertmp.model.heads import Head
from bertmp.training.lamb import Lamb
from bertmp.training.train_options import TrainOptions

_BLOCK = re.compile(r"^bert\.encoder\.layer\.(\d+)\.")


def make_optimizer(model: Head, settings: TrainOptions) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or LAMB over FP32 master weights.

    Biases and LayerNorms are not decayed. With `layerwise_lr_decay` below 1, each block's learning rate is
    that factor times the rate of the block above it; the embeddings have the lowest.
    """
    groups = list(_groups(model, settings))
    if settings.optimizer == "lamb":
        return Lamb(groups, lr=settings.learning_rate)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _groups(model: Head, settings: TrainOptions) -> Iterator[dict[str, Any]]:
    """Parameters by weight decay and depth; `rate` is what a group's learning rate is multiplied with."""
    depth = model.config.num_hidden_layers
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.endswith(".bias") or ".LayerNorm." in name
            decay = 0.0 if plain else settings.weight_decay
            rate = settings.layerwise_lr_decay ** _below_top(name, depth)
            members.setdefault((decay, rate), []).append(parameter)
    for (decay, rate), parameters in members.items():
        yield {"params": parameters, "weight_decay": decay, "rate": rate}


def _below_top(name: str, depth: int) -> int:
    """How many blocks lie above a parameter: 0 for the head and pooler, 1 for the last block, …"""
    if name.startswith("bert.embeddings."):
        return depth + 1
    block = _BLOCK.match(name)
    return depth - int(block[1]) if block else 0


def learning_rate(step: int, total: int, settings: TrainOptions) -> float:
    """The rate of a step counted from 0: linear from 0 to the peak, then linear to 0 at `total`."""
    warm = round(settings.warmup_ratio * total)
    share = (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)
    return settings.learning_rate * share


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
