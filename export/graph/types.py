"""The element types of a graph's tensors, and the low-precision types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto, ValueInfoProto, defs, helper

from bertmp.core.errors import InputError, short_message
from bertmp.export.graph.nodes import ONNX_DOMAINS, accepts
from bertmp.export.graph.weights import without_weights

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


@dataclass(frozen=True)
class LowType:
    """A 16-bit floating-point type.

    Attributes:
        name: as in a plan's `target`.
        label: as in messages.
        element: ONNX's number for it.
        dtype: numpy's type for it.
        largest: its largest finite number.
        smallest_normal: below this, numbers lose significant bits.
        significand_bits: bits of a normal number's significand, the leading one included.
    """

    name: str
    label: str
    element: int
    dtype: np.dtype
    largest: float
    smallest_normal: float
    significand_bits: int

    @property
    def roundoff(self) -> float:
        """The largest relative error of rounding a normal number."""
        return float(2.0**-self.significand_bits)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """FP32 values rounded to this type, to nearest even; what is too large becomes infinite."""
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(self.dtype)


LOW_TYPES = {
    "fp16": LowType("fp16", "FP16", FLOAT16, np.dtype(np.float16), 65504.0, 2.0**-14, 11),
    "bf16": LowType(
        "bf16", "BF16", BFLOAT16, np.dtype(ml_dtypes.bfloat16), 2.0**127 * (2 - 2.0**-7), 2.0**-126, 8
    ),
}
"""Target → its type."""


def element_types(graph: ModelProto, *, strict: bool = True) -> dict[str, int]:
    """Tensor name → `TensorProto` element type, for every tensor of the graph; 0 where it is not a tensor.

    Outputs of operators that ONNX does not know are taken for FP32 where an input is FP32, unless the graph's
    own value information gives another type.

    Args:
        strict: False for a graph whose types contradict each other: what can be inferred is returned.

    Raises:
        InputError: ONNX cannot infer them, which means that the graph is invalid.
    """
    bare = without_weights(graph)
    for _ in range(len(graph.graph.node) + 1):
        types = _inferred(bare, strict)
        types.update({tensor.name: tensor.data_type for tensor in graph.graph.initializer})
        unknown = _first_unknown(bare, types) if strict else []
        if not unknown:
            return types
        bare.graph.value_info.extend(unknown)
    return types


def _inferred(graph: ModelProto, strict: bool) -> dict[str, int]:
    try:
        inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=strict)
    except Exception as error:  # onnx raises its own and bare RuntimeErrors
        raise InputError(
            "types cannot be inferred", graph.graph.name, f"fix the graph ({short_message(error)})"
        ) from error
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _first_unknown(graph: ModelProto, types: Mapping[str, int]) -> list[ValueInfoProto]:
    """What to assume of the first node of a foreign operator whose outputs have no known type."""
    for node in graph.graph.node:
        missing = [name for name in node.output if name and name not in types]
        foreign = missing and not (node.domain in ONNX_DOMAINS and defs.has(node.op_type, node.domain))
        if foreign and any(types.get(name) == FLOAT for name in node.input):
            return [helper.make_tensor_value_info(name, FLOAT, None) for name in missing]
    return []


_TYPE_NAMES: dict[int, str] = {FLOAT16: "tensor(float16)", BFLOAT16: "tensor(bfloat16)"}


def accepts_low_type(node: ir.Node, types: Mapping[str, int], opset: int, element: int) -> bool:
    """Whether the operator is defined with `element` in place of every FP32 tensor that the node touches."""
    inputs, outputs = accepts(node.op_type, opset, _TYPE_NAMES[element])
    return all(
        # A variadic operator's last formal parameter stands for all that follow.
        formal and formal[min(position, len(formal) - 1)]
        for values, formal in ((node.inputs, inputs), (node.outputs, outputs))
        for position, value in enumerate(values)
        if value is not None and types.get(value.name or "") == FLOAT
    )


def opset_of(graph: ModelProto) -> int:
    """The version of ONNX's own operator set that the graph imports; 0 without one."""
    return next((item.version for item in graph.opset_import if item.domain in ONNX_DOMAINS), 0)
