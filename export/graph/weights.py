"""A graph's weights: the view of a graph without them, and their place in files.

The weightless view can be copied, inferred and run whatever the size of the weights. A graph is written in
one file, or with its weights beside it where protobuf cannot hold them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bertmp.core.io import atomic_file

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
            weights[tensor.name] = tensor_values(tensor)
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


def tensor_values(tensor: TensorProto) -> np.ndarray:
    """The values of a tensor; those that lie in a file are mapped into memory, not read."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return np.asarray(ir.serde.deserialize_tensor(tensor).numpy())
    return np.asarray(numpy_helper.to_array(tensor))


def in_memory(tensor: TensorProto) -> TensorProto:
    """The tensor with its bytes in the message, as `onnx.load` reads them."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    loaded = TensorProto()
    loaded.CopyFrom(tensor)
    loaded.raw_data, loaded.data_location = tensor_values(tensor).tobytes(), TensorProto.DEFAULT
    del loaded.external_data[:]
    return loaded


def graph_in_memory(graph: ModelProto) -> ModelProto:
    """The graph with all weights in the message; itself where none lies in a file."""
    if not any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.graph.initializer):
        return graph
    loaded = without_initializers(graph)
    loaded.graph.initializer.extend(in_memory(tensor) for tensor in graph.graph.initializer)
    return loaded


def is_large(tensor: TensorProto) -> bool:
    """Whether the weightless view leaves a weight's values out."""
    return tensor.data_type in _FLOATS and math.prod(tensor.dims) >= LARGE_WEIGHT


def placeholder(name: str, dims: Sequence[int], kind: int) -> TensorProto:
    """A weight whose bytes are given to the session."""
    return external_tensor(name, dims, kind, "memory", 0, _size(dims, kind))


def _size(dims: Sequence[int], kind: int) -> int:
    return math.prod(dims) * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)


def external_tensor(
    name: str, dims: Sequence[int], kind: int, location: str, offset: int, length: int
) -> TensorProto:
    """A tensor whose bytes lie elsewhere."""
    tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


ONE_FILE = 2**31 - 2**20
"""Graphs of more bytes keep their weights in a second file."""

_EXTERNAL = 1024
"""Weights of fewer bytes stay in the graph: shapes and constants that inference reads."""

_ALIGNMENT = 4096
"""Where a weight begins in the second file, so that it can be mapped into memory."""


def stored_size(graph: ModelProto) -> int:
    """About how many bytes a graph takes as a file, its external data included."""
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    external = sum(
        _size(tensor.dims, tensor.data_type)
        for tensor in graph.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    )
    return weights + external if weights + external > ONE_FILE else int(graph.ByteSize()) + external


def size_of(file: Path) -> int:
    """The bytes of a graph's file and of the weights that `write_graph` put beside it."""
    data = _data_file(file)
    return file.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def save_graph(graph: ModelProto, target: Path) -> list[Path]:
    """As `write_graph`, into a folder that is itself written completely or not at all."""
    if stored_size(graph) <= ONE_FILE:
        onnx.save(graph_in_memory(graph), target)
        return [target]
    data = _data_file(target)
    onnx.save(_externalised(graph, data.name, data), target)
    return [target, data]


def write_graph(graph: ModelProto, target: Path, *, one_file: int = ONE_FILE) -> list[Path]:
    """Writes a graph, completely or not at all; one too large for a file has its weights in `TARGET.data`.

    Args:
        one_file: the most bytes that go into one file.

    Returns:
        The files written, the graph first.

    Raises:
        InputError: the disk is full or read-only.
    """
    if stored_size(graph) <= one_file:
        with atomic_file(target) as temporary:
            onnx.save(graph_in_memory(graph), temporary)
        return [target]
    data = _data_file(target)
    with atomic_file(data) as weights, atomic_file(target) as temporary:
        onnx.save(_externalised(graph, data.name, weights), temporary)
    return [target, data]


def _data_file(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.data")


def _externalised(graph: ModelProto, location: str, file: Path) -> ModelProto:
    """The graph with its weights written to `file`, which the graph will find as `location`."""
    bare = without_initializers(graph)
    with file.open("wb") as stream:
        for tensor in graph.graph.initializer:
            content = tensor_values(tensor).tobytes() if not tensor.string_data else b""
            if len(content) < _EXTERNAL:
                bare.graph.initializer.append(tensor)
                continue
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            bare.graph.initializer.append(
                external_tensor(
                    tensor.name, tensor.dims, tensor.data_type, location, stream.tell(), len(content)
                )
            )
            stream.write(content)
    return bare
