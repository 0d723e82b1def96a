"""Use-def links of onnx-ir, by name, with subgraphs counted for the node that carries them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from bertmp.export.graph.operators import subgraphs

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
