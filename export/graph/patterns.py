"""Patterns of a graph: decomposed layer normalisations, and masks on their way to a softmax.

A layer normalisation that an exporter decomposed into elementary operators is

    mean = ReduceMean(x); d = x − mean; variance = ReduceMean(d²); y = d / √(variance + ε) · weight + bias

with the variants in the wild: d·d or Pow(d, 2), division or multiplication with a reciprocal, Pow(·, ±0.5)
for the root, a difference computed twice, no mean at all (RMS normalisation), and Keras's folded form

    scale = weight / √(variance + ε); y = x · scale + (bias − mean · scale)

Mask constants (−3.4e38, −∞, −65504 and −1e9 all occur) reach a softmax through additions and selections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bertmp.export.graph.nodes import (
    MOVING_OPS,
    SOFTMAX_OPS,
    input_names,
    masked_input,
    name_of,
    output_names,
    readers_of,
)
from bertmp.export.graph.types import LowType

_ROOT_OPS = ("Add", "Sqrt", "Pow", "Reciprocal", "Clip", "Max")
"""What stands between the variance and the division: ε, the root, the reciprocal."""


def decomposed_norms(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Node name → the normalisation that it is part of, in words.

    Args:
        nodes: in graph order.
    """
    found: dict[str, str] = {}
    for node in nodes:
        if node.op_type != "ReduceMean" or node.name in found:
            continue
        square = _producer(node.inputs[0])
        if square is None or not _is_square(square):
            continue
        members = _members(node, square)
        if members:
            kind = "layer" if any(member.op_type == "Sub" for member in members) else "RMS"
            words = f"a decomposed {kind} normalisation (its variance is {node.name})"
            found.update({name_of(member): words for member in members})
    return found


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])


def _members(variance: ir.Node, square: ir.Node) -> list[ir.Node]:
    """All nodes of the normalisation; none where what follows the variance is something else."""
    centred = square.inputs[0]
    difference = _producer(centred)
    members = [square, variance]
    deviations: set[ir.Value | None] = {centred}
    centre: set[ir.Value | None] = set()
    if difference is not None and difference.op_type == "Sub":
        mean = _producer(difference.inputs[1])
        if mean is not None and mean.op_type == "ReduceMean" and mean.inputs[0] is difference.inputs[0]:
            # Some exporters compute the difference twice, once for the squares.
            twins = [
                node
                for node in readers_of(mean.outputs[0])
                if node.op_type == "Sub" and node.inputs == difference.inputs
            ]
            members += [mean, *twins]
            deviations |= {twin.outputs[0] for twin in twins}
            centre = {mean.inputs[0], mean.outputs[0]}
    root = _follow_root(variance, deviations)
    if not root:
        return []
    quotients = [
        node
        for node in readers_of(root[-1].outputs[0])
        if node.op_type in ("Div", "Mul") and deviations & set(node.inputs)
    ]
    if not quotients:
        folded = _folded(root[-1], centre)
        return members + root + folded if folded else []
    return members + root + quotients + [node for quotient in quotients for node in _affine(quotient)]


def _follow_root(variance: ir.Node, deviations: set[ir.Value | None]) -> list[ir.Node]:
    """The chain from the variance to what divides: + ε, √, 1/·; empty where there is no root in it."""
    chain: list[ir.Node] = []
    at = variance
    while len(users := readers_of(at.outputs[0])) == 1:
        user = users[0]
        inverse = user.op_type == "Div" and user.inputs[0] not in deviations
        if user.op_type not in _ROOT_OPS and not inverse:
            break
        chain.append(user)
        at = user
    return chain if any(node.op_type in ("Sqrt", "Pow") for node in chain) else []


def _folded(root: ir.Node, centre: set[ir.Value | None]) -> list[ir.Node]:
    """Keras's form behind the root: the scale, its products with x and the mean, and what adds them up.

    Args:
        centre: x and its mean; empty where there is no mean.
    """
    for scale in readers_of(root.outputs[0]):
        products = [
            node
            for node in readers_of(scale.outputs[0])
            if scale.op_type == node.op_type == "Mul" and centre & set(node.inputs)
        ]
        if len(products) == 2:
            shifts = [user for node in products for user in readers_of(node.outputs[0])]
            sums = dict.fromkeys(node for node in shifts if node.op_type in ("Sub", "Add"))
            return [scale, *products, *sums]
    return []


def _affine(quotient: ir.Node) -> list[ir.Node]:
    """The multiplication by the weight and the addition of the bias, where they follow."""
    found: list[ir.Node] = []
    at = quotient
    for operator in ("Mul", "Add"):
        users = readers_of(at.outputs[0])
        user = users[0] if len(users) == 1 else None
        if user is None or user.op_type != operator:
            break
        other = _producer(user.inputs[1] if user.inputs[0] is at.outputs[0] else user.inputs[0])
        if other is not None and other.op_type != "Constant":
            break
        found.append(user)
        at = user
    return found


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
    softmaxes = [node for node in nodes if node.op_type in SOFTMAX_OPS and masked_input(node) in ahead]
    if not softmaxes:
        return None
    behind = {masked_input(node) for node in softmaxes}
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
