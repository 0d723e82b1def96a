"""AdamW with linear warm-up and decay, as BERT is trained with (Devlin et al. 2019, appendix A.2)."""

from __future__ import annotations

import torch
from torch import nn

from bertmp.training.settings import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW over FP32 master weights; biases and LayerNorms are not decayed."""
    plain = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm)
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) not in plain], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if id(p) in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """The rate of a step counted from 0: linear from 0 to the peak, then linear to 0 at `total`."""
    warm = round(settings.warmup * total)
    share = (step + 1) / warm if step < warm else (total - step) / max(1, total - warm)
    return settings.learning_rate * share


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
