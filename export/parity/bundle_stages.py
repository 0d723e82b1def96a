"""The chain's links that a bundle itself holds, after checking that none of them is stale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bertmp.export.bundle.bundle import BUILD_ENGINE, CONVERT, EXPORT, FP16_GRAPH, FP32_GRAPH, Bundle
from bertmp.export.parity.onnx_stage import OnnxStage
from bertmp.export.parity.stage import ParityInputs, Skipped, Stage
from bertmp.export.parity.torch_stage import TorchStage

TORCH, ONNX_FP32, ONNX_FP16, ENGINE = "torch-fp32", "onnx-fp32", "onnx-fp16", "engine"


@dataclass(frozen=True)
class AbsentStage:
    """A link that this bundle does not have."""

    name: str
    reason: str

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> Skipped:
        return Skipped(self.reason)


def chain(bundle: Bundle, checkpoint: Path | None) -> tuple[Stage, ...]:
    """The checkpoint, both graphs and the engine.

    Args:
        checkpoint: in place of the folder that the manifest names.

    Raises:
        InputError: the bundle was not exported, or one of its stages is stale.
    """
    manifest = bundle.manifest
    export = bundle.stage(EXPORT, "bertmp export")
    stages: list[Stage] = [
        TorchStage.of(export, checkpoint, TORCH),
        OnnxStage(ONNX_FP32, bundle.folder / FP32_GRAPH, half=False),
    ]
    if CONVERT in manifest.stages:
        bundle.stage(CONVERT, "bertmp export")
        stages.append(OnnxStage(ONNX_FP16, bundle.folder / FP16_GRAPH, half=True))
    else:
        stages.append(AbsentStage(ONNX_FP16, "the bundle has no FP16 graph"))
    if BUILD_ENGINE in manifest.stages:
        bundle.stage(BUILD_ENGINE, "bertmp build-engine")
        from bertmp.export.parity.engine_stage import EngineStage

        stages.append(EngineStage(bundle))
    else:
        stages.append(AbsentStage(ENGINE, "no engine was built"))
    return tuple(stages)
