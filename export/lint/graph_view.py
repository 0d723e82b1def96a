"""A graph in any mixture of types, as the checks look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.graph.layernorm_patterns import decomposed_norms
from bertmp.export.graph.module_groups import blocks_of
from bertmp.export.graph.types import LOW_TYPES, LowType, element_types, reads
from bertmp.export.precision.masks import MaskPath, mask_paths
from bertmp.export.precision.rules.operators import Softmax

NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
}
"""Floating-point element types, as the report calls them."""

FP16 = LOW_TYPES["fp16"]


@dataclass(frozen=True)
class View:
    """A graph and what is known of its tensors.

    Attributes:
        graph: every node has a name of its own.
        types: tensor → element type.
        complaint: what ONNX's type inference has against the graph; empty where nothing.
        constants: floating-point initializers and Constant nodes' outputs → their values, FP32.
        stored: the same → element type.
    """

    graph: ModelProto
    types: Mapping[str, int]
    complaint: str
    constants: Mapping[str, np.ndarray]
    stored: Mapping[str, int]

    @classmethod
    def of(cls, graph: ModelProto) -> View:
        tensors = {tensor.name: tensor for tensor in graph.graph.initializer if tensor.data_type in NAMES}
        for node in graph.graph.node:
            for item in node.attribute:
                if node.op_type == "Constant" and item.name == "value" and item.t.data_type in NAMES:
                    tensors[node.output[0]] = item.t
        values = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
        types, complaint = _types(graph)
        return cls(
            graph,
            types,
            complaint,
            {name: np.asarray(value, np.float32) for name, value in values.items()},
            {name: tensor.data_type for name, tensor in tensors.items()},
        )

    @property
    def nodes(self) -> Sequence[NodeProto]:
        return self.graph.graph.node

    @cached_property
    def named(self) -> Mapping[str, NodeProto]:
        """Name → node."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def writers(self) -> Mapping[str, NodeProto]:
        """Tensor → the node that writes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def readers(self) -> Mapping[str, Sequence[NodeProto]]:
        """Tensor → the nodes that read it, each once."""
        return _readers(self.nodes)

    @cached_property
    def blocks(self) -> Mapping[str, str]:
        """Node → the part of the graph that it belongs to."""
        return blocks_of(self.graph)

    def kind(self, tensor: str) -> str:
        """`fp16`, `bf16`, `fp32`, `fp64`; empty for other types."""
        return NAMES.get(self.types.get(tensor, 0), "")

    def precision(self, node: NodeProto) -> str:
        """The type that a node computes in: its results', else its inputs'; `integer` without any."""
        kinds = [kind for name in (*node.output, *reads(node)) if (kind := self.kind(name))]
        return kinds[0] if kinds else "integer"

    def low(self, tensor: str) -> LowType | None:
        """The 16-bit type that a tensor is held in; None for others."""
        return LOW_TYPES.get(self.kind(tensor))

    def judged_by(self, tensor: str) -> LowType:
        """The 16-bit type whose range a tensor is held against: its own; an FP32 one's is the graph's."""
        return self.low(tensor) or self._usual

    @cached_property
    def _usual(self) -> LowType:
        kinds = {self.kind(name) for name in (*self.stored, *self.writers)}
        return LOW_TYPES["bf16"] if "bf16" in kinds and "fp16" not in kinds else FP16

    def is_cast(self, node: NodeProto) -> bool:
        """Whether a node is a cast from one floating-point type to another."""
        return node.op_type == "Cast" and bool(self.kind(node.input[0])) and bool(self.kind(node.output[0]))

    def is_from_softmax(self, tensor: str) -> bool:
        """Whether a tensor is a softmax's result, cast, selected or moved: small values are meant there."""
        while (node := self.writers.get(tensor)) is not None:
            if node.op_type in Softmax().operators:
                return True
            if node.op_type not in ("Cast", "Where", "Identity", "Reshape", "Transpose"):
                return False
            tensor = node.input[-1] if node.op_type == "Where" else node.input[0]
        return False

    @cached_property
    def is_fp32(self) -> bool:
        """Whether nothing has been converted yet."""
        return not any(self.low(name) for name in (*self.stored, *self.writers))

    @cached_property
    def _without_casts(self) -> list[NodeProto]:
        """The nodes as they would be connected without the casts between floating-point types."""
        origin: dict[str, str] = {}
        bridged = []
        for node in self.nodes:
            if self.is_cast(node):
                origin[node.output[0]] = origin.get(node.input[0], node.input[0])
                continue
            copy = NodeProto(name=node.name, op_type=node.op_type, domain=node.domain)
            copy.input.extend(origin.get(name, name) for name in node.input)
            copy.output.extend(node.output)
            if node.op_type == "ConstantOfShape":
                copy.attribute.extend(node.attribute)
            bridged.append(copy)
        return bridged

    @cached_property
    def norms(self) -> Mapping[str, str]:
        """Node → the decomposed normalisation that it is part of, casts inside it or not."""
        nodes = self._without_casts
        return decomposed_norms(
            nodes, {name: node for node in nodes for name in node.output}, _readers(nodes)
        )

    @cached_property
    def masks(self) -> tuple[MaskPath, ...]:
        """The ways of the mask constants to the softmaxes."""
        nodes = self._without_casts
        return mask_paths(nodes, _readers(nodes), self.constants)

    @cached_property
    def on_mask_ways(self) -> frozenset[str]:
        """Tensors that hold a mask constant or a sum with it, casts' results included."""
        tensors = {name for path in self.masks for name in path.tensors}
        for node in self.nodes:
            if self.is_cast(node) and node.input[0] in tensors:
                tensors.add(node.output[0])
        return frozenset(tensors)


def _readers(nodes: Sequence[NodeProto]) -> dict[str, list[NodeProto]]:
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(reads(node)):
            readers.setdefault(name, []).append(node)
    return readers


def _types(graph: ModelProto) -> tuple[dict[str, int], str]:
    """Types by strict inference, or where the graph is at odds with itself, what can be known, and why."""
    try:
        return element_types(graph), ""
    except InputError as error:
        complaint = str(error)
    inferred = onnx.shape_inference.infer_shapes(graph)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in graph.graph.initializer})
    return types, complaint
