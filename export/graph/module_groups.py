"""The parts of a graph that people speak of: embeddings, encoder layers, head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx import ModelProto

from bertmp.export.graph.use_def import name_of
from bertmp.export.graph.weightless import without_weights

MODULE_KEY = "module"
"""The node metadata that holds the module's name, e.g. `bert.encoder.layer.3.attention.self`."""

_ENDS_SEGMENT = ("LayerNormalization", "SkipLayerNormalization", "Sqrt")
"""Without module names, a segment ends with each normalisation; a decomposed one has a square root."""


def module_of(node: ir.Node) -> str:
    """The module that a node came from; empty where the graph does not record it."""
    return node.metadata_props.get(MODULE_KEY, "")


def module_path(node: ir.Node) -> tuple[str, ...]:
    """The parts of the module's name, from the metadata or else the node's name; empty where unknown."""
    if module := module_of(node):
        return tuple(module.split("."))
    folders = [part for part in name_of(node).split("/")[:-1] if part]
    return tuple(piece for folder in folders for piece in folder.split("."))


def blocks_of(graph: ModelProto) -> Mapping[str, str]:
    """Node name → block, for every node of a graph; see `module_groups`."""
    return module_groups(list(ir.from_proto(without_weights(graph)).graph))


def module_groups(nodes: Sequence[ir.Node]) -> Mapping[str, str]:
    """Node name → block, for every node.

    A block is the module up to its layer's number (`bert.encoder.layer.3`), else its first two parts
    (`bert.embeddings`, `classifier`). Graphs that do not record modules have them in their nodes' names
    (`/bert/encoder/layer.3/attention/self/MatMul`), else the blocks are the segments between normalisations,
    `segment 0` and so on.
    """
    groups, segment = {}, 0
    for node in nodes:
        path = module_path(node)
        groups[name_of(node)] = _block(path) if path else f"segment {segment}"
        segment += node.op_type in _ENDS_SEGMENT
    return groups


def _block(path: tuple[str, ...]) -> str:
    for position, part in enumerate(path):
        if position and re.fullmatch(r"\d+", part):
            return ".".join(path[: position + 1])
    return ".".join(path[:2])
