"""A graph of the bundle in ONNX Runtime."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.export.graph.ort_sessions import CPU, Provider, onnxruntime_module, open_session
from bertmp.export.parity.inputs import answer_all
from bertmp.export.parity.stage import ParityInputs, Skipped, StageOutput

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
