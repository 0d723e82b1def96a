"""The checkpoint in torch: in FP32, the reference of all other stages, and under autocast as in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bertmp.core.errors import InputError
from bertmp.export.consistency.check import Outputs
from bertmp.export.consistency.tolerance import FP32, Tolerance, unmeasured_tolerance
from bertmp.export.parity.self_check import check_graph
from bertmp.export.parity.stage import Advance, Feed, ParityInputs, Skipped, StageOutput, answer_all

if TYPE_CHECKING:
    from bertmp.training.amp import PrecisionPolicy

TORCH, TORCH_AMP = "torch-fp32", "torch-amp"


@dataclass(frozen=True)
class TorchStage:
    """The checkpoint in torch on the CPU, FP32 throughout.

    Attributes:
        folder: the checkpoint; None where the manifest has none.
        sha256: of the weights that were exported; empty where the manifest has none.
        chosen: whether the user named the folder, so that a wrong one is an error and not a reason.
    """

    folder: Path | None
    sha256: str
    chosen: bool = False
    name: str = TORCH

    def obstacle(self) -> str:
        """Why the checkpoint cannot be the reference; empty where it can."""
        from bertmp.model.weights import fingerprint

        if self.folder is None:
            return "the manifest names no checkpoint"
        try:
            found = fingerprint(self.folder)
        except InputError:
            return f"the checkpoint is not on this machine: {self.folder}"
        if not self.sha256 and not self.chosen:
            return "the manifest does not say which weights were exported: name them with --checkpoint"
        if self.sha256 and found != self.sha256:
            return f"the checkpoint is not the one that was exported: {self.folder}"
        return ""

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples.

        Raises:
            InputError: the user named a checkpoint that cannot be the reference, or its files are
                damaged.
        """
        if obstacle := self.obstacle():
            if self.chosen:
                todo = "name the folder that was exported with --checkpoint"
                raise InputError(obstacle.split(": ")[0], str(self.folder), todo)
            return Skipped(obstacle)
        assert self.folder is not None
        from bertmp.training.amp import PrecisionPolicy

        answered = _answered(self.folder, PrecisionPolicy("fp32", None, "cpu"), inputs, advance, FP32)
        return replace(answered, details={"runs on": "torch, CPU"})


@dataclass(frozen=True)
class AmpStage:
    """The checkpoint in torch as training computes it: matrix products in 16 bits, the rest in FP32.

    On a GPU the products are of the bundle's type. On the CPU they are BF16, as in training there: few CPUs
    multiply FP16, and torch takes many times as long on the others.

    Attributes:
        checkpoint: the FP32 stage of the same checkpoint.
        low_precision: the bundle's, `fp16` or `bf16`.
    """

    checkpoint: TorchStage
    low_precision: str
    name: str = TORCH_AMP

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples.

        Raises:
            InputError: the checkpoint's files are damaged.
        """
        if obstacle := self.checkpoint.obstacle():
            return Skipped(obstacle)
        assert self.checkpoint.folder is not None
        import torch

        from bertmp.training.amp import PrecisionPolicy

        device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = self.low_precision if device == "cuda" else "auto"
        policy = PrecisionPolicy.resolve(precision, "dynamic", device)
        tolerance = unmeasured_tolerance(policy.mode)
        answered = _answered(self.checkpoint.folder, policy, inputs, advance, tolerance)
        arithmetic = f"autocast as in training: {policy.mode.upper()} matrix products, the rest in FP32"
        details: dict[str, object] = {"runs on": f"torch, {device.upper()}", "arithmetic": arithmetic}
        return replace(answered, details=details)


def _answered(
    folder: Path, policy: PrecisionPolicy, inputs: ParityInputs, advance: Advance, tolerance: Tolerance
) -> StageOutput:
    """What the checkpoint answers under a training's precision, compared with itself as well."""
    import torch

    from bertmp.model.checkpoint import load_checkpoint

    model = load_checkpoint(folder, inputs.view.task).model.to(policy.device)

    def answer(feed: Feed) -> Outputs:
        found = model(*(torch.from_numpy(values).to(policy.device) for values in feed.values()))
        tensors = found if isinstance(found, tuple) else (found,)
        return {
            name: tensor.float().cpu().numpy() for name, tensor in zip(model.outputs, tensors, strict=True)
        }

    with torch.inference_mode(), policy.autocast():
        answered = answer_all(inputs, answer, advance)
        return replace(answered, consistency=check_graph(inputs, answer, tolerance))
