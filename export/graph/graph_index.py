"""What a graph says about itself, gathered once: who writes and reads a tensor, types, constants, ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from bertmp.export.graph.layernorm_patterns import decomposed_norms
from bertmp.export.graph.types import FLOAT, LowType, element_types, opset_of, reads
from bertmp.export.precision.masks import MaskPath, mask_paths


@dataclass(frozen=True)
class Wiring:
    """Who writes and who reads each tensor.

    Attributes:
        nodes: in graph order.
        writers: tensor → the node that writes it.
        readers: tensor → the nodes that read it, each once, in graph order.
        inputs, outputs: the graph's.
    """

    nodes: Sequence[NodeProto]
    writers: Mapping[str, NodeProto]
    readers: Mapping[str, Sequence[NodeProto]]
    inputs: frozenset[str]
    outputs: frozenset[str]

    @classmethod
    def of(cls, graph: ModelProto) -> Wiring:
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.graph.node:
            for name in dict.fromkeys(reads(node)):
                readers.setdefault(name, []).append(node)
        return cls(
            list(graph.graph.node),
            {name: node for node in graph.graph.node for name in node.output if name},
            readers,
            frozenset(value.name for value in graph.graph.input),
            frozenset(value.name for value in graph.graph.output),
        )


@dataclass(frozen=True)
class GraphFacts:
    """What the rules may look at beside the node.

    Attributes:
        low: the low type of the plan.
        wiring: writers and readers.
        types: tensor → element type.
        constants: FP32 initializers and Constant nodes' outputs → their values.
        opset: the version of ONNX's operator set.
        norms: node → the decomposed normalisation that it is part of, in words.
        masks: the ways of mask constants to softmaxes.
        largest: tensor → largest magnitude on real text; empty where it was not measured.
        headroom: the factor by which it has to stay below the low type's largest number.
    """

    low: LowType
    wiring: Wiring
    types: Mapping[str, int]
    constants: Mapping[str, np.ndarray]
    opset: int
    norms: Mapping[str, str]
    masks: Sequence[MaskPath]
    largest: Mapping[str, float] = field(default_factory=dict)
    headroom: float = 4.0

    @classmethod
    def of(
        cls,
        graph: ModelProto,
        low: LowType,
        largest: Mapping[str, float] | None = None,
        headroom: float = 4.0,
    ) -> GraphFacts:
        """Errors: InputError where the graph is invalid."""
        wiring, values = Wiring.of(graph), constants(graph)
        return cls(
            low=low,
            wiring=wiring,
            types=element_types(graph),
            constants=values,
            opset=opset_of(graph),
            norms=decomposed_norms(wiring.nodes, wiring.writers, wiring.readers),
            masks=mask_paths(wiring.nodes, wiring.readers, values),
            largest=largest or {},
            headroom=headroom,
        )


def constants(graph: ModelProto) -> dict[str, np.ndarray]:
    """The FP32 values that are fixed in the graph: initializers and Constant nodes.

    An initializer that is an input, too, is only a default and may be any value.
    """
    inputs = {value.name for value in graph.graph.input}
    values = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.graph.initializer
        if tensor.data_type == FLOAT and tensor.name not in inputs
    }
    for node in graph.graph.node:
        value = constant_value(node)
        if value is not None:
            values[node.output[0]] = value
    return values


def constant_value(node: NodeProto) -> np.ndarray | None:
    """The FP32 value of a Constant node; None for other nodes and types."""
    if node.op_type != "Constant":
        return None
    for item in node.attribute:
        if item.name == "value" and item.t.data_type == FLOAT:
            return np.asarray(numpy_helper.to_array(item.t))
        if item.name == "value_float":
            return np.array(item.f, np.float32)
        if item.name == "value_floats":
            return np.array(item.floats, np.float32)
    return None
