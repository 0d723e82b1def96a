"""Mixed precision (Micikevicius et al. 2018): the dtype of the matrix products and the loss scaling.

Master weights, their gradients, the optimizer, LayerNorm, softmax, the pooler's tanh and the loss are FP32
under every policy: the model casts explicitly, whatever the device's autocast would do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bertmp.core.errors import InputError
from bertmp.training.stability.monitor import ScaleStatus
from bertmp.training.train_options import LossScaleConfig, static_loss_scale

Mode = Literal["fp32", "bf16", "fp16"]
MODES = ("auto", "fp32", "bf16", "fp16")
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PrecisionPolicy:
    """A precision for training.

    Attributes:
        mode: the type of the matrix products.
        static_scale: the loss scale where it is fixed; None where it is dynamic or not needed.
        device: `cpu` or `cuda`.
        scaling: how a dynamic scale moves.
    """

    mode: Mode
    static_scale: float | None
    device: str
    scaling: LossScaleConfig = field(default_factory=LossScaleConfig)

    @classmethod
    def resolve(
        cls, precision: str, loss_scale: str, device: str, scaling: LossScaleConfig | None = None
    ) -> PrecisionPolicy:
        """The policy that the options ask for.

        `auto` is FP16 on CUDA and BF16 on the CPU, which has matrix instructions for it and none for FP16.

        Raises:
            InputError: an unknown precision, or a loss scale that is not a positive number.
        """
        if precision not in MODES:
            todo = f"use one of {', '.join(MODES)}"
            raise InputError(f"unknown precision '{precision}'", "--precision", todo)
        mode: Mode = precision if precision != "auto" else ("fp16" if device == "cuda" else "bf16")  # type: ignore[assignment]
        return cls(mode, static_loss_scale(loss_scale), device, scaling or LossScaleConfig())

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix products."""
        return _TYPES[self.mode]

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the forward pass."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.mode != "fp32")

    def scaler(self, kind: Callable[..., torch.amp.GradScaler] = torch.amp.GradScaler) -> LossScaler:
        """A new loss scaler over a GradScaler of this kind; it does nothing unless products run in FP16."""
        return LossScaler(self, kind)


class LossScaler:
    """torch's GradScaler, dynamic or with the scale held at one value.

    Weights are FP32, so their gradients are too: they are unscaled in FP32, in place, before clipping.
    """

    def __init__(self, policy: PrecisionPolicy, kind: Callable[..., torch.amp.GradScaler]) -> None:
        self._static, self._scaling = policy.static_scale, policy.scaling
        self._scaler = kind(
            policy.device,
            init_scale=float(policy.static_scale or policy.scaling.init_loss_scale),
            growth_interval=policy.scaling.loss_scale_growth_interval,
            backoff_factor=policy.scaling.loss_scale_backoff,
            enabled=policy.mode == "fp16",
        )

    @property
    def value(self) -> float:
        """The scale now; 1 where losses are not scaled."""
        return float(self._scaler.get_scale())

    @property
    def enabled(self) -> bool:
        """Whether losses are scaled at all."""
        return self._scaler.is_enabled()

    @property
    def status(self) -> ScaleStatus:
        """Whether a non-finite step can reduce the scale."""
        if not self.enabled or self._static is not None:
            return "fixed"
        reduced = self.value * self._scaling.loss_scale_backoff
        return "can fall" if reduced >= self._scaling.min_loss_scale else "at minimum"

    def scale(self, loss: Tensor) -> Tensor:
        """The scaled loss."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Brings the gradients back to their true size, in place."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps on finite, unscaled gradients, and lets a dynamic scale grow."""
        self._scaler.step(optimizer)
        self._scaler.update(self._static)

    def skip(self) -> None:
        """Skips a step after `unscale`, and reduces a dynamic scale, at most to its minimum."""
        if not self.enabled:
            return
        before = self.value
        self._scaler.update(self._static)  # restarts the growth interval, also where its own check failed
        if self._static is None and self.value >= before:
            # Its check passed: each gradient was finite, but not their norm or the loss.
            self._scaler.update(before * self._scaling.loss_scale_backoff)
        if self._static is None and self.value < self._scaling.min_loss_scale:
            self._scaler.update(float(self._scaling.min_loss_scale))

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)
