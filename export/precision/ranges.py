"""How large each tensor of a graph becomes on real text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, TensorProto, helper

from bertmp.export.graph.module_groups import blocks_of
from bertmp.export.graph.ort_sessions import LightGraph, lighten, open_session, run
from bertmp.export.graph.types import FLOAT, element_types
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.plan import RangeRecord

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True)
class Ranges:
    """The largest magnitude of each tensor.

    Attributes:
        largest: tensor name → largest absolute value, infinite where one overflowed even in FP32.
        source: `calibration` where the graph was run on texts, `training` where training recorded them.
        file: the file of texts or of recorded ranges.
        sha256: of that file.
        texts: how many texts were run; 0 for `training`.
    """

    largest: Mapping[str, float]
    source: Literal["calibration", "training"]
    file: str
    sha256: str
    texts: int


def measure(
    graph: ModelProto, calibration: Calibration, progress: Progress = lambda done, total: None
) -> Ranges:
    """Runs the FP32 graph on the texts and notes the largest magnitude of every FP32 tensor.

    Only the extremes leave the runtime, never whole tensors. What is fixed in the graph (weights, constants)
    is not measured, nor what lies inside an If or Loop.

    Errors: InputError where the graph does not take the texts.
    """
    light, tensors = _with_extremes(lighten(graph))
    session = open_session(light)
    outputs = [f"{name}/{end}" for name in tensors for end in ("max", "min")]
    largest = np.zeros(len(tensors))
    for done, feed in enumerate(calibration.feeds):
        progress(done, len(calibration.feeds))
        ends = np.abs(np.asarray(run(session, outputs, feed, calibration.file), np.float64))
        ends[np.isnan(ends)] = np.inf
        largest = np.maximum(largest, ends.reshape(-1, 2).max(axis=1))
    progress(len(calibration.feeds), len(calibration.feeds))
    return Ranges(
        dict(zip(tensors, largest.tolist(), strict=True)),
        "calibration",
        calibration.file,
        calibration.sha256,
        calibration.texts,
    )


def _with_extremes(light: LightGraph) -> tuple[LightGraph, list[str]]:
    """The graph with the largest and smallest element of each FP32 tensor as its outputs."""
    types = element_types(light.model)
    model = ModelProto()
    model.CopyFrom(light.model)
    inputs = [value.name for value in model.graph.input]
    written = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    weights = {tensor.name for tensor in model.graph.initializer}
    tensors = [
        name for name in (*inputs, *written) if name and types.get(name) == FLOAT and name not in weights
    ]
    del model.graph.output[:]
    for name in tensors:
        for kind, end in (("ReduceMax", "max"), ("ReduceMin", "min")):
            out = f"{name}/{end}"
            model.graph.node.append(helper.make_node(kind, [name], [out], name=out, keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, []))
    return LightGraph(model, light.weights), tensors


def record(ranges: Ranges, graph: ModelProto, limit: float, masked: Collection[str] = ()) -> RangeRecord:
    """What the plan says of the ranges it was made with.

    Args:
        limit: the low type's largest number; a block's headroom is this over its largest magnitude.
        masked: tensors that hold a mask's large numbers, which say nothing of the block.
    """
    blocks = blocks_of(graph)
    largest: dict[str, float] = {}
    for node in graph.graph.node:
        for name in node.output:
            if name in ranges.largest and name not in masked:
                block = blocks[node.name]
                largest[block] = max(largest.get(block, 0.0), ranges.largest[name])
    headroom = {block: limit / value if value else float("inf") for block, value in largest.items()}
    return RangeRecord(ranges.source, ranges.file, ranges.sha256, ranges.texts, headroom)
