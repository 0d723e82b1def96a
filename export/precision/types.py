"""The element types of a graph's tensors, and what the operators accept."""

from __future__ import annotations

from functools import cache

import onnx
from onnx import ModelProto, NodeProto, TensorProto, defs

from bertmp.errors import InputError

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
FP16_MAX = 65504.0


def element_types(graph: ModelProto) -> dict[str, int]:
    """Tensor name → `TensorProto` element type, for every tensor of the graph.

    Errors: InputError where ONNX cannot infer them, which means that the graph is invalid.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    except Exception as error:  # onnx raises its own and bare RuntimeErrors
        raise InputError("types cannot be inferred", graph.graph.name, f"mend the graph ({error})") from error
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in graph.graph.initializer})
    return types


def touches_fp32(node: NodeProto, types: dict[str, int]) -> bool:
    """Whether a node reads or writes an FP32 tensor."""
    return any(types.get(name) == FLOAT for name in (*node.input, *node.output) if name)


@cache
def _accepts(op: str, domain: str, opset: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Per formal input and output of an operator, whether it may be FP16."""
    try:
        schema = defs.get_schema(op, opset, domain)
    except defs.SchemaError:
        return (), ()
    return (
        tuple("tensor(float16)" in formal.types for formal in schema.inputs),
        tuple("tensor(float16)" in formal.types for formal in schema.outputs),
    )


def has_fp16_form(node: NodeProto, types: dict[str, int], opset: int) -> bool:
    """Whether every FP32 tensor that the node touches may as well be FP16 by the operator's definition."""
    inputs, outputs = _accepts(node.op_type, node.domain, opset)
    return all(
        # A variadic operator's last formal parameter stands for all that follow.
        formal and formal[min(position, len(formal) - 1)]
        for names, formal in ((node.input, inputs), (node.output, outputs))
        for position, name in enumerate(names)
        if name and types.get(name) == FLOAT
    )


def opset_of(graph: ModelProto) -> int:
    """The version of ONNX's own operator set that the graph imports."""
    return next((item.version for item in graph.opset_import if item.domain in ("", "ai.onnx")), 0)
