"""Writing graphs: in one file, or with their weights beside them where protobuf cannot hold them."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from bertmp.core.io import atomic_file
from bertmp.export.graph.weightless import shell_of

ONE_FILE = 2**31 - 2**20
"""Graphs of more bytes keep their weights in a second file."""

_EXTERNAL = 1024
"""Weights of fewer bytes stay in the graph: shapes and constants that inference reads."""

_ALIGNMENT = 4096
"""Where a weight begins in the second file, so that it can be mapped into memory."""


def stored_size(graph: ModelProto) -> int:
    """About how many bytes a graph takes as a file, its external data included."""
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    return weights if weights > ONE_FILE else int(graph.ByteSize())


def size_of(file: Path) -> int:
    """The bytes of a graph's file and of the weights that `write_graph` put beside it."""
    data = file.with_name(f"{file.name}.data")
    return file.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def save_graph(graph: ModelProto, target: Path) -> list[Path]:
    """As `write_graph`, into a folder that itself comes to be whole or not at all."""
    target = Path(target)
    if stored_size(graph) <= ONE_FILE:
        onnx.save(graph, target)
        return [target]
    data = target.with_name(f"{target.name}.data")
    onnx.save(_externalised(graph, data.name, data), target)
    return [target, data]


def write_graph(graph: ModelProto, target: Path, *, one_file: int = ONE_FILE) -> list[Path]:
    """Writes a graph, whole or not at all; what is too large for one file has its weights in `TARGET.data`.

    Args:
        one_file: the most bytes that go into one file.

    Returns: the files written, the graph first.

    Errors: InputError for a full or read-only disk.
    """
    target = Path(target)
    if stored_size(graph) <= one_file:
        with atomic_file(target) as temporary:
            onnx.save(graph, temporary)
        return [target]
    data = target.with_name(f"{target.name}.data")
    with atomic_file(data) as weights, atomic_file(target) as temporary:
        onnx.save(_externalised(graph, data.name, weights), temporary)
    return [target, data]


def _externalised(graph: ModelProto, location: str, file: Path) -> ModelProto:
    """The graph with its weights written to `file`, which the graph will find as `location`."""
    bare = shell_of(graph)
    with file.open("wb") as stream:
        for tensor in graph.graph.initializer:
            content = numpy_helper.to_array(tensor).tobytes() if not tensor.string_data else b""
            if len(content) < _EXTERNAL:
                bare.graph.initializer.append(tensor)
                continue
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            outside = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            outside.data_location = TensorProto.EXTERNAL
            place = {"location": location, "offset": str(stream.tell()), "length": str(len(content))}
            for key, value in place.items():
                outside.external_data.add(key=key, value=value)
            stream.write(content)
            bare.graph.initializer.append(outside)
    return bare
