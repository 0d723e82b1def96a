"""A graph for analysis: nodes and values of onnx-ir with use-def links, element types and constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from bertmp.export.graph.exact_values import (
    Guard,
    angle_nodes,
    guarded_nodes,
    position_tensors,
    tensors_from_integers,
)
from bertmp.export.graph.nodes import constant_tensors, input_names, output_names, readers_of, values_of
from bertmp.export.graph.patterns import MaskPath, decomposed_norms, mask_paths
from bertmp.export.graph.types import FLOAT, element_types, opset_of


class GraphIndex:
    """What a graph says about itself; it looks at the graph as it was when the index was made.

    Args:
        graph: any valid graph.
        types: its element types, where they are known.

    Attributes:
        nodes: the graph's own nodes in order; those inside subgraphs are not among them.
        values: tensor → its value: `producer()` writes it, `readers` read it.
        types: tensor → `TensorProto` element type, those inside subgraphs excepted.
        opset: the version of ONNX's operator set.
        inputs, outputs: names of the graph's.

    Raises:
        InputError: the graph's types cannot be inferred: it is invalid.
    """

    def __init__(self, graph: ModelProto, types: Mapping[str, int] | None = None) -> None:
        self.types = types if types is not None else element_types(graph)
        self.model = ir.from_proto(graph)
        self.nodes: Sequence[ir.Node] = list(self.model.graph)
        self.values: Mapping[str, ir.Value] = values_of(self.model.graph)
        self.opset = opset_of(graph)
        self.inputs = frozenset(value.name for value in graph.graph.input)
        self.outputs = frozenset(value.name for value in graph.graph.output)

    @cached_property
    def constants(self) -> Mapping[str, np.ndarray]:
        """FP32 initializers and outputs of Constant nodes → their values."""
        tensors = constant_tensors(self.values)
        return {name: tensor.numpy() for name, tensor in tensors.items() if tensor.dtype == FLOAT}

    @cached_property
    def norms(self) -> Mapping[str, str]:
        """Node → the decomposed normalisation that it is part of, in words."""
        return decomposed_norms(self.nodes)

    @cached_property
    def masks(self) -> Sequence[MaskPath]:
        """The paths of mask constants to softmaxes."""
        return mask_paths(self.nodes, self.constants)

    @cached_property
    def positions(self) -> frozenset[str]:
        """The tensors that follow from positions and constants alone."""
        return position_tensors(self.nodes, self.types)

    @cached_property
    def angles(self) -> Mapping[str, str]:
        """Node → the cosine or sine that it is, or whose angle it computes."""
        return angle_nodes(self.nodes, tensors_from_integers(self.nodes, self.types))

    @cached_property
    def guards(self) -> Mapping[str, Guard]:
        """Node → the guard of a division that it is part of."""
        return guarded_nodes(self.nodes, self.constants)

    def readers(self, tensor: str) -> list[ir.Node]:
        """The nodes that read a tensor, themselves or in their subgraphs; each once, in graph order."""
        return readers_of(self.values[tensor])

    def producer(self, tensor: str) -> ir.Node | None:
        """The node that writes a tensor; None for inputs and initializers."""
        return self.values[tensor].producer() if tensor in self.values else None

    def fp32_tensors(self, node: ir.Node) -> list[str]:
        """The FP32 tensors that a node itself reads or writes, each once."""
        names = dict.fromkeys((*input_names(node), *output_names(node)))
        return [name for name in names if self.types.get(name) == FLOAT]
