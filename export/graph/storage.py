"""Writing graphs: in one file, or with their weights beside them where protobuf cannot hold them."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, numpy_helper

from bertmp.core.io import atomic_file
from bertmp.export.graph.weightless import external_tensor, without_initializers

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
    data = _data_file(file)
    return file.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def save_graph(graph: ModelProto, target: Path) -> list[Path]:
    """As `write_graph`, into a folder that is itself written completely or not at all."""
    if stored_size(graph) <= ONE_FILE:
        onnx.save(graph, target)
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
            onnx.save(graph, temporary)
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
            content = numpy_helper.to_array(tensor).tobytes() if not tensor.string_data else b""
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
