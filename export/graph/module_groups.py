"""The parts of a graph that people speak of: embeddings, encoder layers, head."""

from __future__ import annotations

import re
from collections.abc import Mapping

from onnx import ModelProto, NodeProto

from bertmp.export.graph.tracing import module_of

_ENDS_SEGMENT = ("LayerNormalization", "SkipLayerNormalization", "Sqrt")
"""In a graph without names worth the word a block ends with each normalisation; a decomposed one is known by
its square root."""


def blocks_of(graph: ModelProto) -> Mapping[str, str]:
    """Node name → block, for every node.

    A block is the module up to its layer's number (`bert.encoder.layer.3`), else its first two parts
    (`bert.embeddings`, `classifier`). Graphs that do not name modules speak through their nodes' names
    (`/bert/encoder/layer.3/attention/self/MatMul`), else the blocks are the stretches between normalisations,
    `segment 0` and so on.
    """
    named = {node.name: _path(node) for node in graph.graph.node}
    segments = _segments(graph)
    return {name: _block(path) if path else segments[name] for name, path in named.items()}


def _path(node: NodeProto) -> tuple[str, ...]:
    """The parts of the module that a node came from; none where nothing says it."""
    if module := module_of(node):
        return tuple(module.split("."))
    folders = [part for part in node.name.split("/")[:-1] if part]
    return tuple(piece for folder in folders for piece in folder.split("."))


def _block(path: tuple[str, ...]) -> str:
    for place, part in enumerate(path):
        if place and re.fullmatch(r"\d+", part):
            return ".".join(path[: place + 1])
    return ".".join(path[:2])


def _segments(graph: ModelProto) -> dict[str, str]:
    number, segments = 0, {}
    for node in graph.graph.node:
        segments[node.name] = f"segment {number}"
        number += node.op_type in _ENDS_SEGMENT
    return segments
