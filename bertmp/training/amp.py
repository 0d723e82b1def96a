"""Mixed precision as one policy (Micikevicius et al. 2018): which type the matrix products run in, and
how the loss is scaled.

Master weights, optimizer, LayerNorm, softmax and the loss are FP32 under every policy.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from bertmp.errors import InputError

Mode = Literal["fp32", "bf16", "fp16"]
MODES = ("auto", "fp32", "bf16", "fp16")
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000


@dataclass(frozen=True)
class Policy:
    """A precision for training.

    Attributes:
        mode: the type of the matrix products.
        static_scale: the loss scale where it is fixed; None where it is dynamic or not needed.
        device: `cpu` or `cuda`.
    """

    mode: Mode
    static_scale: float | None
    device: str

    @classmethod
    def resolve(cls, precision: str, loss_scale: str, device: str) -> Policy:
        """The policy that the options ask for.

        `auto` is FP16 on CUDA and BF16 on the CPU, which has matrix instructions for it and none for FP16.

        Errors: InputError for an unknown precision or a loss scale that is no positive number.
        """
        if precision not in MODES:
            raise InputError(
                f"unknown precision '{precision}'", "--precision", f"use one of {', '.join(MODES)}"
            )
        mode: Mode = precision if precision != "auto" else ("fp16" if device == "cuda" else "bf16")  # type: ignore[assignment]
        return cls(mode, _static_scale(loss_scale), device)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix products."""
        return _TYPES[self.mode]

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the forward pass."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.mode != "fp32")

    def scaler(self) -> LossScaler:
        """A new loss scaler; it does nothing unless the products run in FP16."""
        return LossScaler(self)


class LossScaler:
    """torch's GradScaler, dynamic or with the scale held at one value.

    Gradients are unscaled in FP32 before they are clipped; a step with a non-finite gradient is left out.
    """

    def __init__(self, policy: Policy) -> None:
        self._static = policy.static_scale
        self._scaler = torch.amp.GradScaler(
            policy.device,
            init_scale=policy.static_scale or INITIAL_SCALE,
            growth_interval=GROWTH_INTERVAL,
            enabled=policy.mode == "fp16",
        )

    @property
    def value(self) -> float:
        """The scale now; 1 where losses are not scaled."""
        return float(self._scaler.get_scale())

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Brings the gradients back to their true size, in place."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, finite: bool) -> None:
        """Steps where the gradients are finite, and lets the scale grow or fall."""
        if self._scaler.is_enabled():
            self._scaler.step(optimizer)
            self._scaler.update(self._static)
        elif finite:
            optimizer.step()

    def state_dict(self) -> dict[str, object]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        if state:
            self._scaler.load_state_dict(state)


def _static_scale(text: str) -> float | None:
    if text == "dynamic":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"loss scale '{text}'", "--loss-scale", "give 'dynamic' or a positive number")
    return value
