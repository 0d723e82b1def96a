"""The element types of a graph's tensors, the low types, and what the operators accept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, helper

from bertmp.core.errors import InputError
from bertmp.export.graph.weightless import shell_of

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
ONNX_DOMAINS = ("", "ai.onnx")

_SMALL = 4096
"""Weights of more elements than this cannot say a shape: type inference does without their values."""


@dataclass(frozen=True)
class LowType:
    """A 16-bit floating-point type.

    Attributes:
        name: as in a plan's `target`.
        label: as in sentences.
        element: ONNX's number for it.
        dtype: numpy's type for it.
        largest: its largest finite number.
        smallest_normal: below this, numbers lose significant bits.
        roundoff: the largest relative error of rounding a normal number.
    """

    name: str
    label: str
    element: int
    dtype: np.dtype
    largest: float
    smallest_normal: float
    roundoff: float

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """FP32 values rounded to this type, to nearest even; what is too large becomes infinite."""
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(self.dtype)


LOW_TYPES = {
    "fp16": LowType("fp16", "FP16", FLOAT16, np.dtype(np.float16), 65504.0, 2.0**-14, 2.0**-11),
    "bf16": LowType(
        "bf16", "BF16", BFLOAT16, np.dtype(ml_dtypes.bfloat16), 2.0**127 * (2 - 2.0**-7), 2.0**-126, 2.0**-8
    ),
}
"""Target → its type."""


def element_types(graph: ModelProto) -> dict[str, int]:
    """Tensor name → `TensorProto` element type, for every tensor of the graph; 0 where it is no tensor.

    Outputs of operators that ONNX does not know are taken for FP32 where an input is, as the graph's own
    notes say otherwise.

    Errors: InputError where ONNX cannot infer them, which means that the graph is invalid.
    """
    bare = without_weights(graph)
    for _ in range(len(graph.graph.node) + 1):
        types = _inferred(bare)
        types.update({tensor.name: tensor.data_type for tensor in graph.graph.initializer})
        unknown = _first_unknown(bare, types)
        if not unknown:
            return types
        bare.graph.value_info.extend(unknown)
    return types


def _inferred(graph: ModelProto) -> dict[str, int]:
    try:
        inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    except Exception as error:  # onnx raises its own and bare RuntimeErrors
        first = str(error).strip().splitlines()[0]
        raise InputError("types cannot be inferred", graph.graph.name, f"mend the graph ({first})") from error
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def without_weights(graph: ModelProto) -> ModelProto:
    """The graph with its larger weights as inputs: inference needs their types, not their values."""
    bare, own = shell_of(graph), graph.graph
    bare.ir_version = max(4, graph.ir_version)
    given = {value.name for value in own.input}
    for tensor in own.initializer:
        if np.prod(tensor.dims) <= _SMALL or tensor.data_type not in (FLOAT, FLOAT16, BFLOAT16):
            bare.graph.initializer.append(tensor)
        elif tensor.name not in given:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def _first_unknown(graph: ModelProto, types: Mapping[str, int]) -> list[ValueInfoProto]:
    """What to assume of the first node of a foreign operator whose outputs' types nobody says."""
    for node in graph.graph.node:
        missing = [name for name in node.output if name and name not in types]
        if missing and not is_known(node) and any(types.get(name) == FLOAT for name in node.input):
            return [helper.make_tensor_value_info(name, FLOAT, None) for name in missing]
    return []


def is_known(node: NodeProto) -> bool:
    """Whether the operator is one of ONNX's own."""
    return node.domain in ONNX_DOMAINS and defs.has(node.op_type, node.domain)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node carries: branches of an `If`, the body of a `Loop`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def captured(node: NodeProto) -> list[str]:
    """Names that a node's subgraphs read from the graph around them, each once."""
    names: dict[str, None] = {}
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            for name in (*inner.input, *captured(inner)):
                if name and name not in own:
                    names[name] = None
            own.update(inner.output)
        names.update({value.name: None for value in graph.output if value.name not in own})
    return list(names)


def reads(node: NodeProto) -> list[str]:
    """Every tensor whose value a node may use, its subgraphs' included."""
    return [*(name for name in node.input if name), *captured(node)]


def touches_fp32(node: NodeProto, types: Mapping[str, int]) -> bool:
    """Whether a node reads or writes an FP32 tensor, its subgraphs included."""
    return any(types.get(name) == FLOAT for name in (*reads(node), *node.output))


@cache
def _accepts(op: str, opset: int, type_name: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Per formal input and output of an operator, whether it may be of a type."""
    try:
        schema = defs.get_schema(op, opset, "")
    except defs.SchemaError:
        return (), ()
    return (
        tuple(type_name in formal.types for formal in schema.inputs),
        tuple(type_name in formal.types for formal in schema.outputs),
    )


_TYPE_NAMES: dict[int, str] = {FLOAT16: "tensor(float16)", BFLOAT16: "tensor(bfloat16)"}


def has_low_form(node: NodeProto, types: Mapping[str, int], opset: int, element: int) -> bool:
    """Whether every FP32 tensor that the node touches may as well be low by the operator's definition."""
    inputs, outputs = _accepts(node.op_type, opset, _TYPE_NAMES[element])
    return all(
        # A variadic operator's last formal parameter stands for all that follow.
        formal and formal[min(position, len(formal) - 1)]
        for names, formal in ((node.input, inputs), (node.output, outputs))
        for position, name in enumerate(names)
        if name and types.get(name) == FLOAT
    )


def opset_of(graph: ModelProto) -> int:
    """The version of ONNX's own operator set that the graph imports; 0 without one."""
    return next((item.version for item in graph.opset_import if item.domain in ONNX_DOMAINS), 0)
