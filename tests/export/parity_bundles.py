"""A small bundle for the tests of parity, stages that serve it, and faults that no hash gives away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from bertmp.export.bundle import Bundle, Manifest
from bertmp.export.parity.bundle_stages import OnnxStage
from bertmp.export.parity.stage import ParityInputs, Skipped, StageOutput
from bertmp.export.parity.stage_metrics import (
    answers_of,
    probabilities_of,
)
from tests.export.inconsistent_graphs import Fault

LOW = ("onnx-fp16", "onnx-fp16-emulated")
"""The stages of a bundle's FP16 graph."""

LABELS = ("animal", "place", "<b>&\"'")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{number}" for number in range(8000))


def answer_of(graph: Path, inputs: ParityInputs) -> StageOutput:
    answer = OnnxStage("graph", graph, half=False).run(inputs, lambda texts: None)
    assert isinstance(answer, StageOutput)
    return answer


class Served:
    """A served model that answers with the bundle's own graph, `change` applied to its answer."""

    name = "triton"

    def __init__(
        self, graph: Path, change: Callable[[StageOutput], StageOutput] = lambda answer: answer
    ) -> None:
        self.graph, self.change = graph, change

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        answer = answer_of(self.graph, inputs)
        advance(len(inputs.texts))
        served = replace(
            answer, probabilities=probabilities_of(answer).astype(np.float32), answers=answers_of(answer)
        )
        return self.change(served)


def damage(bundle: Path, scale: float) -> None:
    """Adds noise to one layer's FP16 weights and enters the file in the manifest as if it belonged there."""
    graph = onnx.load(bundle / "model.fp16.onnx")
    weights = next(
        tensor
        for tensor in graph.graph.initializer
        if list(tensor.dims) == [128, 256] and tensor.data_type == onnx.TensorProto.FLOAT16
    )
    values = onnx.numpy_helper.to_array(weights)
    noise = np.random.default_rng(0).normal(0, scale, values.shape)
    weights.CopyFrom(onnx.numpy_helper.from_array((values + noise).astype(np.float16), weights.name))
    onnx.save(graph, bundle / "model.fp16.onnx")
    adopt(bundle)


def mix_up(bundle: Path, fault: Fault) -> None:
    """Puts a fault into the FP16 graph and enters it in the manifest as if it belonged there."""
    graph = onnx.load(bundle / "model.fp16.onnx")
    fault(graph)
    onnx.save(graph, bundle / "model.fp16.onnx")
    adopt(bundle)


def adopt(bundle: Path) -> None:
    """Makes the files of the stages `export` and `convert` what the manifest says."""
    manifest, files = Manifest.load(bundle), Bundle(bundle)
    for name in ("export", "convert"):
        entry = manifest.stages[name]
        recorded = ({file: files.sha256(file) for file in part} for part in (entry.inputs, entry.outputs))
        inputs, outputs = recorded
        manifest = manifest.with_stage(name, replace(entry, inputs=inputs, outputs=outputs))
    manifest.save(bundle)
