"""The chain's links that a bundle itself holds, after checking that none of them is stale."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.export.bundle import (
    BUILD_ENGINE,
    CONVERT,
    EXPORT,
    FP16_GRAPH,
    FP32_GRAPH,
    Bundle,
    StageRecord,
)
from bertmp.export.graph.ort_sessions import CPU, Provider, onnxruntime_module, open_session
from bertmp.export.parity.inputs import answer_all
from bertmp.export.parity.stage import ParityInputs, Skipped, Stage, StageOutput

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


@dataclass(frozen=True)
class TorchStage:
    """The checkpoint in torch on the CPU, FP32 throughout.

    Attributes:
        name: `torch-fp32`.
        folder: the checkpoint; None where the manifest has none.
        sha256: of the weights that were exported; empty where the manifest has none.
        chosen: whether the user named the folder, so that a wrong one is an error and not a reason.
    """

    name: str
    folder: Path | None
    sha256: str
    chosen: bool = False

    @classmethod
    def of(cls, export: StageRecord, checkpoint: Path | None, name: str) -> TorchStage:
        """The stage for a bundle's export entry; `checkpoint` takes the place of the folder it names."""
        recorded = export.settings.get("checkpoint")
        sha256 = export.results.get("checkpoint_sha256") or export.settings.get("checkpoint_sha256") or ""
        if checkpoint is not None:
            return cls(name, Path(checkpoint), str(sha256), chosen=True)
        return cls(name, Path(str(recorded)) if recorded else None, str(sha256))

    def obstacle(self) -> str:
        """Why the checkpoint cannot be the reference; empty where it can."""
        from bertmp.model.weights import fingerprint

        if self.folder is None:
            return "the manifest names no checkpoint"
        try:
            found = fingerprint(self.folder)
        except InputError:
            return f"the checkpoint is not on this machine: {self.folder}"
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
                raise InputError(
                    obstacle.split(": ")[0],
                    str(self.folder),
                    "name the folder that was exported with --checkpoint",
                )
            return Skipped(obstacle)
        assert self.folder is not None
        import torch

        from bertmp.model.checkpoint import load_checkpoint

        model = load_checkpoint(self.folder, "classification").model

        def answer(feed: dict[str, np.ndarray]) -> np.ndarray:
            return np.asarray(model(*map(torch.from_numpy, feed.values())).numpy())

        with torch.inference_mode():
            logits = answer_all(inputs, answer, advance)
        return StageOutput(logits, details={"runs on": "torch, CPU"})


_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})
"""TF32 rounds the factors of a product to 10 bits: an FP32 graph would no longer be one."""
_FP16_ON_CPU = "FP16 weights with FP32 arithmetic: the x86 CPU provider has no FP16 kernels and casts"


@dataclass(frozen=True)
class OnnxStage:
    """One graph, on the GPU where ONNX Runtime can use one, else on the CPU.

    Attributes:
        name: `onnx-fp32` or `onnx-fp16`.
        graph: the ONNX file.
        half: whether the graph computes in FP16, which a CPU does only in part.
    """

    name: str
    graph: Path
    half: bool

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples.

        Raises:
            MissingComponent: ONNX Runtime is not installed.
        """
        if not self.graph.is_file():
            return Skipped(f"the bundle has no {self.graph.name}")
        try:
            session = open_session(self.graph, providers=_providers())
        except InputError as error:
            if "NOT_IMPLEMENTED" not in str(error):
                raise error.__cause__ or error from None  # the runtime's own: the stage failed, not the input
            return Skipped("ONNX Runtime has no kernels for the graph's 16-bit type on this machine")

        def answer(feed: dict[str, np.ndarray]) -> np.ndarray:
            return np.asarray(session.run(["logits"], feed)[0])

        logits = answer_all(inputs, answer, advance)
        provider = session.get_providers()[0]
        details: dict[str, object] = {
            "runs on": f"ONNX Runtime, {provider.removesuffix('ExecutionProvider')}"
        }
        if self.half and provider == CPU and platform.machine() in ("x86_64", "AMD64"):
            details["arithmetic"] = _FP16_ON_CPU
        return StageOutput(logits, details=details)


def _providers() -> list[Provider]:
    """CUDA without TF32 where there is one, else the CPU."""
    has_cuda = _CUDA[0] in onnxruntime_module().get_available_providers()
    return [_CUDA, CPU] if has_cuda else [CPU]
