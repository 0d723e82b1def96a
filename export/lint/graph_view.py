"""A graph of any mixture of types, as the checks look at it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx import ModelProto, TensorProto

from bertmp.core.errors import InputError
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import (
    SOFTMAX_OPS,
    constant_tensors,
    input_names,
    module_groups,
    name_of,
    output_names,
    read_names,
    values_of,
)
from bertmp.export.graph.patterns import MaskPath, decomposed_norms, mask_paths
from bertmp.export.graph.types import LOW_TYPES, LowType, element_types

NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
}
"""Floating-point element types, as the report calls them."""

FP16 = LOW_TYPES["fp16"]


class GraphView(GraphIndex):
    """A graph and what is known of its tensors, even where its types contradict each other.

    Attributes:
        graph: every node has a unique name.
        type_error: what ONNX's type inference reports; empty where the types agree.
        stored: floating-point initializers and Constant nodes' outputs → element type.
    """

    def __init__(self, graph: ModelProto) -> None:
        self.graph, self.type_error = graph, ""
        try:
            types = element_types(graph)
        except InputError as error:
            types, self.type_error = element_types(graph, strict=False), str(error)
        super().__init__(graph, types)
        tensors = constant_tensors(self.values)
        self._float_tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype in NAMES}
        self.stored = {name: int(tensor.dtype) for name, tensor in self._float_tensors.items()}

    @cached_property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The values of what is `stored`, as FP32."""
        return {name: np.asarray(tensor.numpy(), np.float32) for name, tensor in self._float_tensors.items()}

    @cached_property
    def named(self) -> Mapping[str, ir.Node]:
        """Name → node."""
        return {name_of(node): node for node in self.nodes}

    @cached_property
    def written(self) -> frozenset[str]:
        """The tensors that nodes write."""
        return frozenset(name for node in self.nodes for name in output_names(node) if name)

    @cached_property
    def blocks(self) -> Mapping[str, str]:
        """Node → the part of the graph that it belongs to."""
        return module_groups(self.nodes)

    def kind(self, tensor: str) -> str:
        """`fp16`, `bf16`, `fp32`, `fp64`; empty for other types."""
        return NAMES.get(self.types.get(tensor, 0), "")

    def precision(self, node: ir.Node) -> str:
        """The type that a node computes in: its results', else its inputs'; `integer` without any."""
        kinds = [kind for name in (*output_names(node), *read_names(node)) if (kind := self.kind(name))]
        return kinds[0] if kinds else "integer"

    def low(self, tensor: str) -> LowType | None:
        """The 16-bit type that a tensor is held in; None for others."""
        return LOW_TYPES.get(self.kind(tensor))

    def judged_by(self, tensor: str) -> LowType:
        """The 16-bit type whose range a tensor is checked against: its own or, for FP32, the graph's."""
        return self.low(tensor) or self._usual

    @cached_property
    def _usual(self) -> LowType:
        kinds = {self.kind(name) for name in (*self.stored, *self.written)}
        return LOW_TYPES["bf16"] if "bf16" in kinds and "fp16" not in kinds else FP16

    def is_cast(self, node: ir.Node) -> bool:
        """Whether a node is a cast from one floating-point type to another."""
        if node.op_type != "Cast":
            return False
        return bool(self.kind(input_names(node)[0])) and bool(self.kind(output_names(node)[0]))

    def is_from_softmax(self, tensor: str) -> bool:
        """Whether a tensor is a softmax's result, cast, selected or moved: small values are normal there."""
        while (node := self.producer(tensor)) is not None:
            if node.op_type in SOFTMAX_OPS and node.op_type != "Attention":
                return True
            if node.op_type not in ("Cast", "Where", "Identity", "Reshape", "Transpose"):
                return False
            tensor = input_names(node)[-1 if node.op_type == "Where" else 0]
        return False

    @cached_property
    def is_fp32(self) -> bool:
        """Whether nothing has been converted yet."""
        return not any(self.low(name) for name in (*self.stored, *self.written))

    @cached_property
    def _nodes_without_casts(self) -> list[ir.Node]:
        """The nodes connected as if there were no casts between floating-point types."""
        model = ir.from_proto(self.graph)
        values_of(model.graph)
        for node in list(model.graph):
            if self.is_cast(node) and node.inputs[0] is not None:
                node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
                model.graph.remove(node, safe=True)
        return list(model.graph)

    @cached_property
    def norms(self) -> Mapping[str, str]:
        """Node → the decomposed normalisation that it is part of, with or without casts inside."""
        return decomposed_norms(self._nodes_without_casts)

    @cached_property
    def masks(self) -> tuple[MaskPath, ...]:
        """The paths of the mask constants to the softmaxes."""
        return mask_paths(self._nodes_without_casts, self.constants)

    @cached_property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Those `constants` that hold a number, mask constants apart."""
        masks = {path.constant for path in self.masks}
        return {name: values for name, values in self.constants.items() if values.size and name not in masks}

    @cached_property
    def on_mask_paths(self) -> frozenset[str]:
        """Tensors that hold a mask constant or a sum with it, casts' results included."""
        tensors = {name for path in self.masks for name in path.tensors}
        for node in self.nodes:
            if self.is_cast(node) and input_names(node)[0] in tensors:
                tensors.update(output_names(node))
        return frozenset(tensors)
