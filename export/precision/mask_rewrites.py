"""Replacing attention-mask constants that the low precision cannot add to a score.

FP16 cannot hold most mask constants, nor the sum of any of them and a negative score. Two ways keep the
result equal: the addition stays FP32 (nothing changes), or the constant becomes one whose sum with any
score stays in range and whose exponential is still exactly 0.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bertmp.export.graph.nodes import input_names, readers_of
from bertmp.export.graph.patterns import MASK_MOVING_OPS, MaskPath
from bertmp.export.graph.types import FLOAT
from bertmp.export.precision.plan import Rewrite
from bertmp.export.precision.rules.rule import RuleContext

SAFE_MASK_BIAS = -16384.0
"""What replaces a mask constant: a power of two, so exact in every type, also after a multiplication by 1."""

EXP_UNDERFLOW = -110.0
"""exp of this and of anything less is exactly 0 in FP32, whose smallest number is exp(-103.3)."""


def mask_rewrites(context: RuleContext) -> tuple[Rewrite, ...]:
    """The mask constants that may be replaced, each with the justification that the result stays the same.

    What has to hold: between the constant and the sum with the scores stand only operators that move values
    or choose between them, or a multiplication with a mask of zeros and ones; it is added once; and the
    scores' largest magnitude B on real inputs leaves a margin on both sides, with headroom h:

        replacement + 2·h·B ≤ −110, so that every masked term's exponential is exactly 0
        replacement − h·B ≥ −largest, so that no sum overflows

    Empty without measured ranges.
    """
    found = (_rewrite(path, context) for path in context.graph.masks if path.may_overflow(context.low))
    return tuple(rewrite for rewrite in found if rewrite is not None)


def _rewrite(path: MaskPath, context: RuleContext) -> Rewrite | None:
    graph, low = context.graph, context.low
    values = graph.constants.get(path.constant)
    if values is None or path.value > 0 or not np.all((values == path.value) | (values == 0)):
        return None
    bounds = []
    for node in (node for node in graph.nodes if node.name in path.nodes):
        others = [name for name in input_names(node) if name not in path.tensors]
        if node.op_type in ("Add", "Where") and _joins_softmax(node, path):
            scores = [name for name in others if graph.types.get(name) == FLOAT]
            if len(scores) != 1 or scores[0] not in context.largest:
                return None
            bounds.append(context.largest[scores[0]])
        elif node.op_type == "Mul":
            if not all(_is_indicator(name, context) for name in others):
                return None
        elif node.op_type == "Where":
            if not all(_is_all(name, 0, context) for name in others if name != input_names(node)[0]):
                return None
        elif node.op_type not in MASK_MOVING_OPS:
            return None
    if not bounds:
        return None
    bound = max(bounds) * context.headroom
    if SAFE_MASK_BIAS + 2 * bound > EXP_UNDERFLOW or SAFE_MASK_BIAS - bound < -low.largest:
        return None
    return Rewrite(
        path.constant,
        path.value,
        SAFE_MASK_BIAS,
        f"scores reach {max(bounds):.4g} on real inputs; with {context.headroom:g} times that, a masked "
        f"score is at least {-(SAFE_MASK_BIAS + 2 * bound):.6g} below every other, so its exponential is "
        f"exactly 0, and it is not below {SAFE_MASK_BIAS - bound:.6g}, which {low.label} holds",
    )


def _joins_softmax(node: ir.Node, path: MaskPath) -> bool:
    """Whether the mask is added to the scores here: a softmax reads the result, perhaps moved."""
    at = [node]
    while at:
        users = [user for item in at for value in item.outputs for user in readers_of(value)]
        if any(user.name in path.softmaxes for user in users):
            return True
        at = [user for user in users if user.op_type in MASK_MOVING_OPS and user.name in path.nodes]
    return False


def _is_indicator(name: str, context: RuleContext) -> bool:
    """Whether a tensor holds only zeros and ones: made from integers, and at most 1 on real inputs."""
    if not context.largest.get(name, math.inf) <= 1:
        return False
    node = context.graph.producer(name)
    while node is not None and node.op_type in (*MASK_MOVING_OPS, "Sub"):
        names = input_names(node)
        if node.op_type == "Cast" and context.graph.types.get(names[0]) != FLOAT:
            return True
        if node.op_type == "Sub" and not _is_all(names[0], 1, context):
            return False
        node = context.graph.producer(names[1 if node.op_type == "Sub" else 0])
    return False


def _is_all(name: str, value: float, context: RuleContext) -> bool:
    """Whether a tensor is a constant of this value."""
    values = context.graph.constants.get(name)
    return values is not None and bool(np.all(values == value))
