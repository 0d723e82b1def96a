"""The operator Attention of opset 23, taken apart into what a plan can give different precisions.

Attention is product, mask, softmax and product in one node, so it has one precision. Its attribute
`softmax_precision` would keep the softmax in FP32, but neither the mask, which FP16 cannot hold, nor the
scores. Taken apart, each follows the same rules as in every other graph:

    Y = Softmax(√s·Q · (√s·K)ᵀ + mask) · V

with the scale s divided between both factors, as the operator's definition has it
(https://onnx.ai/onnx/operators/onnx__Attention.html): the scores are never larger than they end up. A query
that may look nowhere gets zeros, as the definition says; that is selected behind the second product, so that
a runtime still finds product, softmax and product side by side and can fuse them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bertmp.export.graph.types import FLOAT, element_types
from bertmp.export.graph.weights import without_weights

_LOWEST = float(np.finfo(np.float32).min)
"""What a Boolean mask adds to a score that it forbids; a mask of numbers forbids by this or less."""

_NAMES = ("query", "key", "value")
_HEADS = ("q_num_heads", "kv_num_heads", "kv_num_heads")
"""The attributes with the numbers of heads of `[batch, length, heads·width]`."""

_TO_HEADS = (0, 2, 1, 3)
"""`[batch, length, heads, width]` to `[batch, heads, length, width]`, and back."""

Shapes = Mapping[str, tuple[int | None, ...]]
"""Tensor → its dimensions, None where they are not known."""


def take_attention_apart(graph: ModelProto, note: Callable[[str], None]) -> None:
    """Replaces every FP32 Attention of an encoder by elementary operators; others are left as they are.

    Left are those with past keys, a causal mask, a soft cap, grouped heads, an unknown number of heads or
    further outputs: the planner keeps them in FP32.

    Args:
        graph: changed in place; its nodes have unique names, and a node's parts are named `NODE.PART`.
        note: called with how many were taken apart.
    """
    if not any(_is_attention(node) for node in graph.graph.node):
        return
    shapes, types = _shapes(graph), element_types(graph)
    nodes: list[NodeProto] = []
    seeing: dict[str, str] = {}
    count = 0
    for node in graph.graph.node:
        is_fp32 = _is_attention(node) and types.get(node.output[0]) == FLOAT
        scale = _scale(node, shapes) if is_fp32 else None
        if scale is None:
            nodes.append(node)
            continue
        parts = _Parts(node, graph, types, seeing, is_flat=len(shapes[node.input[0]]) == 3)
        parts.write(math.sqrt(scale))
        nodes.extend(parts.nodes)
        count += 1
    if count:
        del graph.graph.node[:]
        graph.graph.node.extend(nodes)
        note(f"{count} Attention operators are taken apart, so that their softmax and mask can stay FP32")


def _is_attention(node: NodeProto) -> bool:
    return node.op_type == "Attention" and node.domain in ("", "ai.onnx")


def _shapes(graph: ModelProto) -> Shapes:
    inferred = onnx.shape_inference.infer_shapes(without_weights(graph), data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    shapes: dict[str, tuple[int | None, ...]] = {
        value.name: _dims(value) for value in values if value.type.tensor_type.HasField("shape")
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}


def _dims(value: ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _scale(node: NodeProto, shapes: Shapes) -> float | None:
    """The factor of the scores; None for an Attention that cannot be taken apart."""
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    plain = not given.get("is_causal") and not given.get("softcap")
    if not plain or any(node.input[4:]) or any(node.output[1:]):
        return None
    heads = [_heads(name, given.get(key), shapes) for name, key in zip(node.input[:3], _HEADS, strict=True)]
    if heads[0] is None or any(item is None or item[0] != heads[0][0] for item in heads):
        return None
    scale = given.get("scale", 1 / math.sqrt(heads[0][1]))
    return float(scale) if scale > 0 else None


def _heads(name: str, given: int | None, shapes: Shapes) -> tuple[int, int] | None:
    """The number of heads of an input and the width of one; None where unknown.

    Args:
        given: the attribute with the number of heads, which an input `[batch, length, heads·width]` needs.
    """
    shape = shapes.get(name, ())
    if len(shape) == 4:
        heads, width = shape[1], shape[3]
        return (heads, width) if heads and width else None
    width = shape[2] if len(shape) == 3 else None
    return (given, width // given) if given and width else None


class _Parts:
    """The elementary operators that stand for one Attention.

    Args:
        seeing: mask → the tensor that says which queries may look anywhere; added to.
        is_flat: whether its inputs are `[batch, length, heads·width]`, not `[batch, heads, length, width]`.
    """

    def __init__(
        self,
        node: NodeProto,
        graph: ModelProto,
        types: Mapping[str, int],
        seeing: dict[str, str],
        *,
        is_flat: bool,
    ) -> None:
        self.source, self.graph, self.types, self.seeing = node, graph, types, seeing
        self.is_flat = is_flat
        self.mask = node.input[3] if len(node.input) > 3 else ""
        self.nodes: list[NodeProto] = []

    def write(self, root: float) -> None:
        """Adds the operators; `root` is the root of the factor of the scores."""
        query, key, value = self.source.input[:3]
        if self.is_flat:
            given = {item.name: item.i for item in self.source.attribute}
            query, key, value = (
                self._op("Transpose", self._split(name, which, given[attribute]), part=which, perm=_TO_HEADS)
                for name, which, attribute in zip((query, key, value), _NAMES, _HEADS, strict=True)
            )
        factor = self._constant("root_of_scale", np.array(root, np.float32))
        key = self._op("Transpose", key, part="transposed_key", perm=(0, 1, 3, 2))
        query = self._op("Mul", query, factor, part="scaled_query")
        key = self._op("Mul", key, factor, part="scaled_key")
        scores = self._op("MatMul", query, key, part="scores")
        if self.mask:
            scores = self._op("Add", scores, self._mask_of_numbers(), part="masked_scores")
        weights = self._op("Softmax", scores, part="softmax", axis=-1)
        self._finish(weights, value)

    def _finish(self, weights: str, value: str) -> None:
        """The second product and what follows; the last operator writes the Attention's output."""
        masked, flat = bool(self.mask), self.is_flat
        context = self._op("MatMul", weights, value, part="context" if masked or flat else "")
        if masked:
            nothing = self._constant("nothing", np.array(0, np.float32))
            part = "seen_context" if flat else ""
            context = self._op("Where", self._may_look(), context, nothing, part=part)
        if flat:
            merged = self._op("Transpose", context, part="merged_heads", perm=_TO_HEADS)
            self._op("Reshape", merged, self._constant("shape", np.array((0, 0, -1), np.int64)))

    def _may_look(self) -> str:
        """Which queries the mask lets look anywhere, BOOL `[…, length, 1]`; made once for every mask."""
        if self.mask not in self.seeing:
            last = self._constant("last_axis", np.array([-1], np.int64))
            if self.types[self.mask] == TensorProto.BOOL:
                mask = self._op("Cast", self.mask, part="mask_as_integers", to=TensorProto.INT32)
                bound = self._constant("bound", np.array(0, np.int32))
            else:
                mask, bound = self.mask, self._constant("bound", np.array(_LOWEST, np.float32))
            best = self._op("ReduceMax", mask, last, part="best", keepdims=1)
            self.seeing[self.mask] = self._op("Greater", best, bound, part="may_look")
        return self.seeing[self.mask]

    def _split(self, name: str, which: str, heads: int) -> str:
        shape = self._constant(f"{which}_shape", np.array((0, 0, heads, -1), np.int64))
        return self._op("Reshape", name, shape, part=f"split_{which}")

    def _mask_of_numbers(self) -> str:
        """The mask to add; a Boolean one is True where a query may look."""
        if self.types[self.mask] != TensorProto.BOOL:
            return self.mask
        allowed = self._constant("allowed", np.array(0, np.float32))
        forbidden = self._constant("forbidden", np.array(_LOWEST, np.float32))
        return self._op("Where", self.mask, allowed, forbidden, part="mask")

    def _op(self, op: str, *inputs: str, part: str = "", **attributes: Any) -> str:
        """Adds an operator; without a part's name it is the one that writes the Attention's output."""
        name = f"{self.source.name}.{part or 'output'}"
        output = name if part else self.source.output[0]
        node = helper.make_node(op, inputs, [output], name=name, **attributes)
        node.metadata_props.extend(self.source.metadata_props)
        self.nodes.append(node)
        return output

    def _constant(self, part: str, values: np.ndarray) -> str:
        name = f"{self.source.name}.{part}"
        self.graph.graph.initializer.append(numpy_helper.from_array(values, name))
        return name
