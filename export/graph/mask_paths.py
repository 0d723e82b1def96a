"""Attention-mask constants, and the paths on which they reach a softmax through additions and selections.

−3.4e38, −∞, −65504 and −1e9 all occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bertmp.export.graph.operators import MOVING_OPS, SOFTMAX_OPS
from bertmp.export.graph.types import LowType
from bertmp.export.graph.use_def import input_names, name_of, output_names

MIN_MASK_MAGNITUDE = 9999.0
"""Constants of at least this magnitude mask; -1e4 is the smallest in use."""

MASK_MOVING_OPS = MOVING_OPS | {"Concat", "Trilu", "Cast", "ScatterND"}
"""Operators that move a mask's values and change none."""

_PATH_OPS = MASK_MOVING_OPS | {"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Neg"}
"""Operators that a mask constant passes on its path to a softmax."""


@dataclass(frozen=True)
class MaskPath:
    """The paths of one constant to the softmaxes.

    Attributes:
        constant: the tensor that holds it.
        value: its extreme, the one of the largest magnitude; may be infinite.
        nodes: names of the nodes that its magnitude passes, in graph order.
        tensors: the tensors that hold it or its sums.
        softmaxes: names of the softmaxes that it reaches.
    """

    constant: str
    value: float
    nodes: tuple[str, ...]
    tensors: frozenset[str]
    softmaxes: tuple[str, ...]

    def may_overflow(self, low: LowType) -> bool:
        """Whether its sum with a score may leave the type's range: half is left to the scores."""
        return not abs(self.value) <= low.largest / 2


def mask_paths(nodes: Sequence[ir.Node], constants: Mapping[str, np.ndarray]) -> tuple[MaskPath, ...]:
    """Every mask constant of a graph that reaches a softmax, in the order of the graph's constants.

    Args:
        nodes: in graph order.
        constants: FP32 constants by tensor.
    """
    extremes = {name: _extreme(values) for name, values in constants.items()}
    fills = [node for node in nodes if node.op_type == "ConstantOfShape"]
    extremes.update({output_names(node)[0]: _fill_value(node) for node in fills})
    found = (_path(name, value, nodes) for name, value in extremes.items() if value is not None)
    return tuple(path for path in found if path is not None)


def _extreme(values: np.ndarray) -> float | None:
    """The value of the largest magnitude, where that is large enough to mask."""
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    value = low if -low >= high else high
    return value if abs(value) >= MIN_MASK_MAGNITUDE else None


def _fill_value(node: ir.Node) -> float | None:
    """The large value with which a ConstantOfShape fills a tensor."""
    if "value" not in node.attributes:
        return None
    tensor = node.attributes["value"].as_tensor()
    return _extreme(tensor.numpy()) if tensor.dtype == ir.DataType.FLOAT else None


def _path(name: str, value: float, nodes: Sequence[ir.Node]) -> MaskPath | None:
    """What lies between a constant and the softmaxes it reaches; None where it reaches none."""
    ahead = {name}
    for node in nodes:
        if node.op_type in _PATH_OPS and ahead & set(input_names(node)):
            ahead.update(output_names(node))
    softmaxes = [node for node in nodes if node.op_type in SOFTMAX_OPS and input_names(node)[0] in ahead]
    if not softmaxes:
        return None
    behind = {input_names(node)[0] for node in softmaxes}
    passed = []
    for node in reversed(nodes):
        reached = ahead & set(input_names(node))
        if node.op_type in _PATH_OPS and reached and behind & set(output_names(node)):
            passed.append(name_of(node))
            behind |= reached
    return MaskPath(
        constant=name,
        value=value,
        nodes=tuple(reversed(passed)),
        tensors=frozenset(ahead & behind),
        softmaxes=tuple(name_of(node) for node in softmaxes),
    )
