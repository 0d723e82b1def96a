"""Graphs in ONNX Runtime for measuring: on the CPU, so that a plan does not depend on the machine's GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bertmp.core.errors import InputError, MissingComponent

Feed = Mapping[str, np.ndarray]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LARGE = 1024
"""Weights of so many elements are handed to ONNX Runtime as arrays: a session makes no copy of them, and a
graph may hold more than protobuf's 2 GB."""


@dataclass(frozen=True)
class LightGraph:
    """A graph without the bytes of its large weights.

    Attributes:
        model: the graph; its large weights have a type and a shape only.
        weights: their values by name.
    """

    model: ModelProto
    weights: Mapping[str, np.ndarray]


def lighten(graph: ModelProto) -> LightGraph:
    """Takes the large weights out of a graph; `graph` itself is left as it is."""
    light = ModelProto(ir_version=graph.ir_version, producer_name=graph.producer_name)
    light.opset_import.extend(graph.opset_import)
    light.functions.extend(graph.functions)
    light.graph.name = graph.graph.name
    for part in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, part).extend(getattr(graph.graph, part))
    weights: dict[str, np.ndarray] = {}
    for tensor in graph.graph.initializer:
        if tensor.data_type not in _FLOATS or math.prod(tensor.dims) < _LARGE:
            light.graph.initializer.append(tensor)
            continue
        weights[tensor.name] = np.asarray(numpy_helper.to_array(tensor))
        light.graph.initializer.append(placeholder(tensor.name, tensor.dims, tensor.data_type))
    return LightGraph(light, weights)


def placeholder(name: str, dims: Sequence[int], kind: int) -> TensorProto:
    """A weight whose bytes are given to the session."""
    size = math.prod(dims) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    empty = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "memory"), ("offset", "0"), ("length", str(size))):
        empty.external_data.add(key=key, value=value)
    return empty


def open_session(light: LightGraph) -> Any:
    """An ONNX Runtime session on the CPU, with no rewriting that changes the numbers.

    Errors: MissingComponent where ONNX Runtime is not installed; InputError where it refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingComponent(
            "ONNX Runtime is not installed", "", "pip install 'bertmp[cpu]' or 'bertmp[gpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Beyond the basic level patterns are fused, and not the same ones with and without roundings.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in light.weights.values()]
    options.add_external_initializers(list(light.weights), values)
    try:
        return onnxruntime.InferenceSession(
            light.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's own exceptions share no other base
        raise InputError(
            "ONNX Runtime refuses the graph", light.model.graph.name, first_line(error)
        ) from error


def run(session: Any, outputs: Sequence[str], feed: Feed, file: str) -> list[np.ndarray]:
    """The named outputs for one feed.

    Errors: InputError where the graph does not take what the texts of `file` became.
    """
    try:
        return [np.asarray(value) for value in session.run(list(outputs), dict(feed))]
    except Exception as error:
        raise InputError("the texts do not fit the graph's inputs", file, first_line(error)) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line that is not too long."""
    words = " ".join(str(error).split())
    return words if len(words) <= 200 else f"{words[:200]}…"
