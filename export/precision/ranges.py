"""How large each tensor of a graph becomes on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, TensorProto, helper

from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import module_groups, name_of, output_names
from bertmp.export.graph.ort_sessions import open_measuring_session, run
from bertmp.export.graph.types import FLOAT, element_types
from bertmp.export.graph.weights import WeightlessGraph, split_weights
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.plan import RangeRecord

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True)
class Ranges:
    """The largest magnitude of each tensor.

    Attributes:
        largest: tensor name → largest absolute value, infinite where one overflowed even in FP32.
        source: `calibration` where the graph was run on examples, `training` where training recorded them.
        file: the file of examples or of recorded ranges.
        sha256: of that file.
        texts: how many examples were run; 0 for `training`.
    """

    largest: Mapping[str, float]
    source: Literal["calibration", "training"]
    file: str
    sha256: str
    texts: int


def measure(
    graph: ModelProto, calibration: Calibration, progress: Progress = lambda done, total: None
) -> Ranges:
    """Runs the FP32 graph on the examples and records the largest magnitude of every FP32 tensor.

    The runtime returns the extremes alone, never full tensors. Weights and constants are not measured, nor
    what lies inside an If or Loop.

    Raises:
        InputError: the graph does not take the examples.
    """
    light, tensors = _with_extremes(split_weights(graph))
    session = open_measuring_session(light)
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


def _with_extremes(graph: WeightlessGraph) -> tuple[WeightlessGraph, list[str]]:
    """The graph with the largest and smallest element of each FP32 tensor as its outputs."""
    types = element_types(graph.model)
    model = ModelProto()
    model.CopyFrom(graph.model)
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
    return WeightlessGraph(model, graph.weights), tensors


def record(ranges: Ranges, graph: GraphIndex, limit: float) -> RangeRecord:
    """What the plan records of the ranges it was made with.

    Args:
        graph: tensors that hold a mask's large numbers are left out: they do not describe their block.
        limit: the low precision's largest number; a block's headroom is this over its largest magnitude.
    """
    blocks = module_groups(graph.nodes)
    masked = {name for path in graph.masks for name in path.tensors}
    largest: dict[str, float] = {}
    for node in graph.nodes:
        for name in output_names(node):
            if name in ranges.largest and name not in masked:
                block = blocks[name_of(node)]
                largest[block] = max(largest.get(block, 0.0), ranges.largest[name])
    headroom = {block: limit / value if value else float("inf") for block, value in largest.items()}
    return RangeRecord(ranges.source, ranges.file, ranges.sha256, ranges.texts, headroom)
