"""The weightless view of a graph: what can be copied, inferred and run whatever the size of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

LARGE_WEIGHT = 1024
"""Floating-point weights of as many elements are left out: none of them is a shape."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_VALUES = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
_LISTS = ("opset_import", "metadata_props", "functions")
_GRAPH_LISTS = ("node", "input", "output", "value_info", "sparse_initializer", "metadata_props")


@dataclass(frozen=True)
class WeightlessGraph:
    """A graph without the bytes of its large weights.

    Attributes:
        model: the graph; its large weights have a type and a shape only.
        weights: their values by name.
    """

    model: ModelProto
    weights: Mapping[str, np.ndarray]


def split_weights(graph: ModelProto) -> WeightlessGraph:
    """Takes the large weights out of a graph; `graph` itself is left as it is."""
    model, weights = without_initializers(graph), {}
    for tensor in graph.graph.initializer:
        if is_large(tensor):
            weights[tensor.name] = np.asarray(numpy_helper.to_array(tensor))
            model.graph.initializer.append(placeholder(tensor.name, tensor.dims, tensor.data_type))
        else:
            model.graph.initializer.append(tensor)
    return WeightlessGraph(model, weights)


def without_weights(graph: ModelProto) -> ModelProto:
    """The graph with its large weights as inputs: type inference and the checker need no values of them."""
    model = without_initializers(graph)
    model.ir_version = max(4, graph.ir_version)  # from it on, weights need not be inputs
    inputs = {value.name for value in graph.graph.input}
    for tensor in graph.graph.initializer:
        if not is_large(tensor):
            model.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return model


def without_initializers(graph: ModelProto) -> ModelProto:
    """A copy of everything but the initializers."""
    bare = ModelProto()
    for name in _VALUES:
        if graph.HasField(name):
            setattr(bare, name, getattr(graph, name))
    for name in _LISTS:
        getattr(bare, name).extend(getattr(graph, name))
    bare.graph.name, bare.graph.doc_string = graph.graph.name, graph.graph.doc_string
    for name in _GRAPH_LISTS:
        getattr(bare.graph, name).extend(getattr(graph.graph, name))
    return bare


def is_large(tensor: TensorProto) -> bool:
    """Whether the weightless view leaves a weight's values out."""
    return tensor.data_type in _FLOATS and math.prod(tensor.dims) >= LARGE_WEIGHT


def placeholder(name: str, dims: Sequence[int], kind: int) -> TensorProto:
    """A weight whose bytes are given to the session."""
    size = math.prod(dims) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    return external_tensor(name, dims, kind, "memory", 0, size)


def external_tensor(
    name: str, dims: Sequence[int], kind: int, location: str, offset: int, length: int
) -> TensorProto:
    """A tensor whose bytes lie elsewhere."""
    tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
