"""Making a plan: every node of a graph against every rule."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from bertmp.errors import InputError
from bertmp.export.graph import module_of
from bertmp.export.precision.plan import NodePlan, PrecisionPlan
from bertmp.export.precision.rules import GraphFacts, Pinned, Rule, standard_rules
from bertmp.export.precision.types import FLOAT, element_types, opset_of, touches_fp32


def make_plan(graph: ModelProto, pins: Sequence[str] = ()) -> PrecisionPlan:
    """Decides each node's precision.

    Args:
        graph: an FP32 graph whose nodes have names of their own.
        pins: patterns of nodes that the user keeps in FP32.

    Errors: InputError for a pin that names no node and for an invalid graph.
    """
    types = element_types(graph)
    facts = GraphFacts(types, constants(graph), opset_of(graph))
    _check_pins(pins, graph)
    rules = standard_rules(pins)
    return PrecisionPlan(
        graph_sha256=fingerprint(graph),
        nodes=tuple(_plan_node(node, facts, rules, types) for node in graph.graph.node),
    )


def fingerprint(graph: ModelProto) -> str:
    """SHA-256 of the graph as `onnx.save` writes it."""
    return hashlib.sha256(graph.SerializeToString()).hexdigest()


def constants(graph: ModelProto) -> dict[str, np.ndarray]:
    """The FP32 values that are fixed in the graph: initializers and Constant nodes."""
    values = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == FLOAT}
    for node in graph.graph.node:
        for item in node.attribute:
            if node.op_type == "Constant" and item.name == "value" and item.t.data_type == FLOAT:
                values[node.output[0]] = numpy_helper.to_array(item.t)
    return values


def _plan_node(node: NodeProto, facts: GraphFacts, rules: Sequence[Rule], types: dict[str, int]) -> NodePlan:
    if not touches_fp32(node, types):
        return NodePlan(node.name, node.op_type, module_of(node), "integer")
    reasons = tuple(reason for rule in rules if (reason := rule.reason(node, facts)) is not None)
    return NodePlan(node.name, node.op_type, module_of(node), "fp32" if reasons else "fp16", reasons)


def _check_pins(pins: Sequence[str], graph: ModelProto) -> None:
    for pattern in pins:
        if not any(Pinned.matches(pattern, node) for node in graph.graph.node):
            raise InputError(
                f"'{pattern}' names no node",
                "--keep-fp32",
                "use a node's name, an operator or a module, * allowed",
            )
