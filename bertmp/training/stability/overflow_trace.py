"""Finds the module where a step first was not finite, by replaying the step with hooks on every module.

Normal steps run without hooks. A replay has the weights, batch, dropout and precision of the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bertmp.training.amp import LossScaler
from bertmp.training.distributed import DistributedContext
from bertmp.training.distributed.sharding import local_tensor
from bertmp.training.stability.monitor import KINDS, FaultSite, Kind, StepFacts
from bertmp.training.step import GradientAccumulator, LossNormalizer, RankBatch, Scale, unscaled


def diagnose_step(
    gradients: GradientAccumulator,
    batch: RankBatch,
    normalizer: LossNormalizer,
    loss: float,
    scaler: LossScaler,
) -> StepFacts:
    """The facts of a step that was not finite.

    If only gradients of the scaled loss were not finite, a second replay without loss scaling tells whether
    the scale is too high or there is a fault.
    """
    fault = locate_nonfinite(gradients, batch, normalizer, scaler.scale)
    scaled = scaler.enabled and fault is not None and fault.kind == "gradient"
    too_high = scaled and locate_nonfinite(gradients, batch, normalizer) is None
    return StepFacts(loss, False, fault, too_high, scaler.status)


def locate_nonfinite(
    gradients: GradientAccumulator, batch: RankBatch, normalizer: LossNormalizer, scale: Scale = unscaled
) -> FaultSite | None:
    """Runs a step's forward and backward pass again and returns where it first was not finite.

    Called by every process at the same time; all get the same result. The parameters' gradients are
    cleared before and after.

    Args:
        scale: multiplies the loss, as in the step; by default a replay without loss scaling.

    Returns:
        None if parameters, batch, outputs and gradients are all finite.
    """
    gradients.module.zero_grad(set_to_none=True)
    with Hooks(gradients.objective) as hooks:
        hooks.check_weights()
        hooks.check_batch(batch)
        gradients.accumulate(batch, normalizer, scale)
        hooks.check_gradients()
    gradients.module.zero_grad(set_to_none=True)
    return hooks.first(gradients.context)


def locate_nonfinite_weight(objective: nn.Module, context: DistributedContext) -> FaultSite | None:
    """The first module with a weight that is not finite, the same in every process."""
    hooks = Hooks(objective)
    hooks.check_weights()
    return hooks.first(context)


def all_finite(values: Any) -> bool:
    """Whether every floating-point tensor in a nest of containers is finite."""
    return all(bool(local_tensor(tensor).isfinite().all()) for tensor in _tensors(values))


class Hooks:
    """Forward and full backward hooks on every module, while the context is active.

    Attributes:
        found: the first value that was not finite in this process.
    """

    def __init__(self, objective: nn.Module) -> None:
        self.found: FaultSite | None = None
        self._modules = {_name(path): module for path, module in objective.named_modules()}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Hooks:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name, "output", 2)))
            self._handles.append(module.register_full_backward_hook(self._hook(name, "gradient", 1)))
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    self._handles.append(parameter.register_hook(self._hook(name, "gradient", 0)))
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        # Token ids have no gradient, and a hooked output is a view: torch warns of both.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        return self

    def __exit__(self, *error: object) -> None:
        self._warnings.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def check_weights(self) -> None:
        """Checks the parameters."""
        for name, module in self._modules.items():
            self._check(name, "parameter", list(module.parameters(recurse=False)))

    def check_batch(self, rank_batch: RankBatch) -> None:
        """Checks the targets: token ids are always finite."""
        for batch in rank_batch.micro_batches:
            for target, values in (batch.targets if batch else {}).items():
                self._check(target, "input", values)

    def check_gradients(self) -> None:
        """Checks the parameters' gradients: those of sharded parameters pass no hook."""
        for name, module in reversed(self._modules.items()):
            self._check(name, "gradient", [parameter.grad for parameter in module.parameters(recurse=False)])

    def _check(self, name: str, kind: Kind, values: Any) -> None:
        if self.found is None and not all_finite(values):
            self.found = FaultSite(name, kind)

    def _hook(self, name: str, kind: Kind, first: int) -> Callable[..., None]:
        """A hook that checks its arguments from number `first` on; those before are module and inputs."""
        return lambda *arguments: self._check(name, kind, arguments[first:])

    def first(self, context: DistributedContext) -> FaultSite | None:
        """The same result for all processes: the first kind of fault at the first module in order."""
        order = {name: position for position, name in enumerate(self._modules)}
        seen = [fault for fault in context.gather(self.found) if fault is not None]
        return min(seen, key=lambda c: (KINDS.index(c.kind), order.get(c.module, -1)), default=None)


def _name(path: str) -> str:
    """A module's name in the model, from its path in the objective."""
    return path.removeprefix("head.") if path not in ("", "head") else "loss"


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor) and values.is_floating_point():
        yield values.detach()
    elif isinstance(values, (Mapping, list, tuple)):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _tensors(value)
