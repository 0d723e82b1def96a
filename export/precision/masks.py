"""Attention-mask constants: large numbers whose way leads, through additions and selections, to a softmax.

−3.4e38, −∞, −65504 and −1e9 all occur. FP16 does not hold most of them, and holds the sum of none of them and
a negative score. Two ways are proven to leave the result equal: the addition stays FP32 (nothing changes), or
the constant becomes one whose sum with any score stays in range and whose exponential is still exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from bertmp.export.graph.types import LowType
from bertmp.export.precision.plan import Rewrite

if TYPE_CHECKING:
    from bertmp.export.graph.graph_index import GraphFacts

LARGE = 9999.0
"""Constants of at least this magnitude mask; -1e4 is the smallest in use."""

SURVIVOR = -16384.0
"""What replaces a mask constant: a power of two, so exact in every type, also after a multiplication by 1."""

VANISHES = -110.0
"""exp of this and of anything less is exactly 0 in FP32, whose smallest number is exp(-103.3)."""

_SOFTMAX = ("Softmax", "LogSoftmax")
_MOVES = (
    "Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Tile", "Concat", "Identity", "Gather",
    "Flatten", "Trilu", "Cast", "ScatterND",
)  # fmt: skip
"""Operators that move a mask's values and change none."""

_STEPS = frozenset((*_MOVES, "Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Neg"))
"""Operators that a mask constant passes on its way to a softmax."""


@dataclass(frozen=True)
class MaskPath:
    """The ways of one constant to the softmaxes.

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

    def harms(self, low: LowType) -> bool:
        """Whether its sum with a score may leave the type's range: half of it is left to the scores."""
        return not abs(self.value) <= low.largest / 2

    def joins_softmax(self, node: NodeProto, facts: GraphFacts) -> bool:
        """Whether the mask and the scores come together here: a softmax reads the outcome, perhaps moved."""
        at = [node]
        while at:
            users = [
                user for item in at for name in item.output for user in facts.wiring.readers.get(name, ())
            ]
            if any(user.name in self.softmaxes for user in users):
                return True
            at = [user for user in users if user.op_type in _MOVES and user.name in self.nodes]
        return False


def mask_paths(
    nodes: Sequence[NodeProto],
    readers: Mapping[str, Sequence[NodeProto]],
    constants: Mapping[str, np.ndarray],
) -> tuple[MaskPath, ...]:
    """Every mask constant of a graph, in the order of the graph's constants.

    Args:
        nodes: in graph order.
        readers: tensor → the nodes that read it.
        constants: FP32 constants by tensor.
    """
    extremes = {name: value for name, values in constants.items() if (value := _extreme(values))}
    extremes.update({node.output[0]: value for node in nodes if (value := _filling(node))})
    found = (_path(name, value, nodes, readers) for name, value in extremes.items())
    return tuple(path for path in found if path is not None)


def _extreme(values: np.ndarray) -> float | None:
    """The value of the largest magnitude, where that is large enough to mask."""
    if values.size == 0:
        return None
    low, high = float(values.min()), float(values.max())
    value = low if -low >= high else high
    return value if abs(value) >= LARGE else None


def _filling(node: NodeProto) -> float | None:
    """The large value with which a ConstantOfShape fills a tensor."""
    for item in node.attribute:
        if node.op_type == "ConstantOfShape" and item.t.data_type == TensorProto.FLOAT:
            return _extreme(numpy_helper.to_array(item.t))
    return None


def _path(
    name: str, value: float, nodes: Sequence[NodeProto], readers: Mapping[str, Sequence[NodeProto]]
) -> MaskPath | None:
    """What lies between a constant and the softmaxes it reaches; None where it reaches none."""
    ahead = {name}
    for node in nodes:
        if node.op_type in _STEPS and ahead & set(node.input):
            ahead.update(node.output)
    softmaxes = [node for node in nodes if node.op_type in _SOFTMAX and node.input[0] in ahead]
    behind = {node.input[0] for node in softmaxes}
    steps = []
    for node in reversed(nodes):
        if node.op_type in _STEPS and behind & set(node.output) and ahead & set(node.input):
            steps.append(node)
            behind.update(set(node.input) & ahead)
    if not softmaxes:
        return None
    return MaskPath(
        constant=name,
        value=value,
        nodes=tuple(node.name for node in reversed(steps)),
        tensors=frozenset(ahead & behind),
        softmaxes=tuple(node.name for node in softmaxes),
    )


def rewrites(facts: GraphFacts) -> tuple[Rewrite, ...]:
    """The mask constants that may be replaced, each with the proof that the result stays the same.

    What has to hold: between the constant and the sum with the scores stand only operators that move values
    or choose between them, or a multiplication with a mask of zeros and ones; it is summed once; and the
    scores' largest magnitude B on real text leaves room on both sides, with headroom h:

        replacement + 2·h·B ≤ −110, so that every masked term's exponential is exactly 0
        replacement − h·B ≥ −largest, so that no sum overflows

    Empty without measured ranges.
    """
    found = (_rewrite(path, facts) for path in facts.masks if path.harms(facts.low))
    return tuple(rewrite for rewrite in found if rewrite is not None)


def _rewrite(path: MaskPath, facts: GraphFacts) -> Rewrite | None:
    values = facts.constants.get(path.constant)
    if values is None or not np.all((values == path.value) | (values == 0)):
        return None
    by_name = {node.name: node for node in facts.wiring.nodes}
    bounds = []
    for name in path.nodes:
        node = by_name[name]
        others = [item for item in node.input if item not in path.tensors]
        if node.op_type in ("Add", "Where") and path.joins_softmax(node, facts):
            scores = [item for item in others if facts.types.get(item) == TensorProto.FLOAT]
            if len(scores) != 1 or scores[0] not in facts.largest:
                return None
            bounds.append(facts.largest[scores[0]])
        elif node.op_type == "Mul":
            if not all(_is_indicator(item, facts) for item in others):
                return None
        elif node.op_type == "Where":
            if not all(_is_zero(item, facts) for item in others if item != node.input[0]):
                return None
        elif node.op_type not in _MOVES:
            return None
    if not bounds or path.value > 0:
        return None
    bound = max(bounds) * facts.headroom
    if SURVIVOR + 2 * bound > VANISHES or SURVIVOR - bound < -facts.low.largest:
        return None
    return Rewrite(
        path.constant,
        path.value,
        SURVIVOR,
        f"scores reach {max(bounds):.4g} on real text; with {facts.headroom:g} times that, a masked score "
        f"lies at least {-(SURVIVOR + 2 * bound):.6g} below every other, so its exponential is exactly 0, "
        f"and not below {SURVIVOR - bound:.6g}, which {facts.low.label} holds",
    )


def _is_indicator(name: str, facts: GraphFacts) -> bool:
    """Whether a tensor holds only zeros and ones: made from whole numbers, and at most 1 on real text."""
    if not facts.largest.get(name, math.inf) <= 1:
        return False
    node = facts.wiring.writers.get(name)
    while node is not None and node.op_type in (*_MOVES, "Sub"):
        if node.op_type == "Cast" and facts.types.get(node.input[0]) != TensorProto.FLOAT:
            return True
        if node.op_type == "Sub" and not _is_one(node.input[0], facts):
            return False
        node = facts.wiring.writers.get(node.input[1 if node.op_type == "Sub" else 0])
    return False


def _is_one(name: str, facts: GraphFacts) -> bool:
    values = facts.constants.get(name)
    return values is not None and bool(np.all(values == 1))


def _is_zero(name: str, facts: GraphFacts) -> bool:
    values = facts.constants.get(name)
    return values is not None and bool(np.all(values == 0))
