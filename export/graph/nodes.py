"""What a node is: its names and use-def links, the traits of its operator, and the module it came from.

The tables of operator traits are the only ones: precision, lint and emulation share them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, defs

from bertmp.export.graph.weights import without_weights

_OWNER = "owner"


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """Name → value, for every value of a graph: initializers, then inputs, then what nodes write.

    Notes for every node inside a subgraph which node of `graph` carries it, for `readers_of`.
    """
    values = dict(graph.initializers)
    values.update((value.name or "", value) for value in graph.inputs)
    for node in graph:
        values.update((value.name, value) for value in node.outputs if value.name)
        for subgraph in subgraphs(node):
            for inner in subgraph.all_nodes():
                inner.meta[_OWNER] = node
    return values


def readers_of(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value; a read inside a subgraph counts for the node that carries it."""
    return list(dict.fromkeys(user.meta.get(_OWNER, user) for user in value.consumers()))


def name_of(node: ir.Node) -> str:
    """A node's name; every graph that is read has its nodes named."""
    return node.name or ""


def input_names(node: ir.Node) -> list[str]:
    """Names of a node's inputs; empty where one is left out."""
    return [(value.name or "") if value is not None else "" for value in node.inputs]


def read_names(node: ir.Node) -> list[str]:
    """Every tensor of the graph that a node may use, in its subgraphs, too; each once."""
    values = [value for value in node.inputs if value is not None]
    for subgraph in subgraphs(node):
        inner = [value for one in subgraph.all_nodes() for value in one.inputs if value is not None]
        values += [value for value in (*inner, *subgraph.outputs) if value.graph is node.graph]
    return list(dict.fromkeys(value.name for value in values if value.name))


def output_names(node: ir.Node) -> list[str]:
    """Names of a node's outputs; empty where one is left out."""
    return [value.name or "" for value in node.outputs]


def constant_tensors(values: Mapping[str, ir.Value]) -> dict[str, ir.TensorProtocol]:
    """Initializers and the outputs of Constant nodes.

    An initializer that is also an input is only a default and may be any value: it is left out.
    """
    found = {name: _constant_tensor(value) for name, value in values.items() if not value.is_graph_input()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    # `ir.convenience.get_const_tensor` would rename the tensor in the graph that the nodes were made from.
    node = value.producer()
    if node is None:
        return value.const_value
    if node.op_type != "Constant":
        return None
    name, attribute = next(iter(node.attributes.items()))
    if name in ("value_float", "value_floats"):
        return ir.tensor(np.array(attribute.value, np.float32))
    return attribute.as_tensor() if name == "value" else None


ONNX_DOMAINS = ("", "ai.onnx")

DATA_MOVEMENT_OPS = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Tile")
)
"""Operators that move all values of their first input and change none."""

SELECTION_OPS = frozenset(("Slice", "Gather", "Split"))
"""Operators that move some values of their first input and change none."""

MOVING_OPS = DATA_MOVEMENT_OPS | SELECTION_OPS

EXACT_OPS = MOVING_OPS | {"Concat", "Max", "Min", "Neg", "Relu", "Where"}
"""Operators whose results are among their inputs, up to the sign: rounded inputs give rounded results."""

DTYPE_AGNOSTIC_OPS = frozenset(("Cast", "Shape", "Size"))
"""Operators that read a tensor in whatever type it has: it is never cast for them."""

DTYPE_ATTRIBUTES: Mapping[str, str] = {
    "Cast": "to", "EyeLike": "dtype", "RandomNormalLike": "dtype", "RandomUniformLike": "dtype",
}  # fmt: skip
"""Operator → the attribute that names its output's type."""

MATMUL_OPS = frozenset(
    ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN")
)
"""Operators that multiply matrices: where the time of a network goes."""

NORMALISATION_OPS = (
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    "BatchNormalization", "LpNormalization", "MeanVarianceNormalization",
)  # fmt: skip

SOFTMAX_OPS = ("Softmax", "LogSoftmax", "Attention")
"""Operators that are a softmax, or have one inside."""


def masked_input(node: ir.Node) -> str:
    """What a softmax reads where a mask may have been added: its scores, or the mask of an Attention."""
    names = input_names(node)
    position = 3 if node.op_type == "Attention" else 0
    return names[position] if len(names) > position else ""


REDUCTION_OPS = (
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceProd", "CumSum", "GlobalAveragePool",
)  # fmt: skip

QUANTIZE_OPS = ("QuantizeLinear", "DynamicQuantizeLinear")
DEQUANTIZE_OPS = ("DequantizeLinear",)


def is_onnx_op(node: ir.Node) -> bool:
    """Whether the operator is one of ONNX's own."""
    return node.domain in ONNX_DOMAINS and defs.has(node.op_type, node.domain)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node carries: branches of an `If`, the body of a `Loop`."""
    found = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


@cache
def accepts(op: str, opset: int, type_name: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Per formal input and output of an operator, whether it may be of a type such as `tensor(float16)`."""
    try:
        schema = defs.get_schema(op, opset, "")
    except defs.SchemaError:
        return (), ()
    return (
        tuple(type_name in formal.types for formal in schema.inputs),
        tuple(type_name in formal.types for formal in schema.outputs),
    )


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
