"""What ONNX's operators do with values and types: the one table that precision, lint and emulation share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import onnx_ir as ir
from onnx import defs

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

SOFTMAX_OPS = ("Softmax", "LogSoftmax")

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
