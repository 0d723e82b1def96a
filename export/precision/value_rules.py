"""The rules about values: what the low precision cannot hold, or spoils whatever the inputs are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bertmp.export.graph.nodes import input_names, name_of, output_names
from bertmp.export.graph.types import FLOAT, LowType
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rule_context import RuleContext


def constant_beyond_range(node: ir.Node, context: RuleContext) -> Reason | None:
    """A weight or constant that the low precision cannot hold would become infinite, here or further on."""
    low = context.low
    for name in input_names(node):
        values = context.graph.constants.get(name)
        if values is None or values.size == 0 or name in context.rewritten:
            continue
        largest = max(float(values.max()), -float(values.min()))
        if not largest <= low.largest:  # true for NaN, too
            return Reason(
                "constant-beyond-range",
                f"the constant {name} reaches {largest:.4g}, beyond {low.label}'s {low.largest:.5g}",
                {"largest": largest, "limit": low.largest},
            )
    constant, value = context.reached_by.get(name_of(node), ("", 0.0))
    if not constant:
        return None
    return Reason(
        "constant-beyond-range",
        f"the constant {constant} = {value:.4g} may reach this node, where a row has nothing else: it is "
        f"beyond {low.label}'s {low.largest:.5g}",
        {"largest": abs(value), "limit": low.largest},
    )


def beyond_headroom(node: ir.Node, context: RuleContext) -> Reason | None:
    """A tensor that the node reads or writes, which on real inputs comes within the headroom of overflow."""
    if not context.largest:
        return None
    low, graph = context.low, context.graph
    changed = {name for path in graph.masks if path.constant in context.rewritten for name in path.tensors}
    names = [name for name in graph.fp32_tensors(node) if name in context.largest and name not in changed]
    largest, name = max(((context.largest[name], name) for name in names), default=(0.0, ""))
    if largest * context.headroom <= low.largest:
        return None
    headroom = low.largest / largest
    does = "writes" if name in output_names(node) else "reads"
    return Reason(
        "range",
        f"{does} {name}, which reaches {largest:.4g} on {context.inputs}: {low.label}'s largest number, "
        f"{low.largest:.5g}, is {headroom:.2g} times that, and at least {context.headroom:g} times is "
        "required",
        {"largest": largest, "headroom": headroom, "wanted": context.headroom},
    )


def small_weights(node: ir.Node, context: RuleContext) -> Reason | None:
    """Weights so small that many become zero or subnormal: the low precision keeps few of their bits.

    The measure is the rounding error of the tensor by norm. Normal numbers keep it below the type's roundoff;
    twice that can only come from small ones.
    """
    for name in input_names(node):
        values = context.graph.constants.get(name)
        if values is not None and name not in context.judged:
            context.judged[name] = _judge_weights(name, values.reshape(-1), context.low)
        if reason := context.judged.get(name):
            return reason
    return None


def _judge_weights(name: str, flat: np.ndarray, low: LowType) -> Reason | None:
    limit = 2 * low.roundoff
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.sqrt(np.dot(flat, flat)))
    smallest = low.smallest_normal * low.roundoff
    # A bound on what underflow can add to the error: most tensors need not be rounded.
    if norm == 0 or not np.isfinite(norm) or smallest * flat.size**0.5 < low.roundoff * norm:
        return None
    rounded = low.rounded(flat).astype(np.float32)
    error = float(np.linalg.norm((rounded - flat).astype(np.float64)) / norm)
    if not error > limit:
        return None
    zeroed = float(np.mean(rounded[flat != 0] == 0))
    subnormal = float(np.mean(np.abs(flat[flat != 0]) < low.smallest_normal))
    return Reason(
        "small-weights",
        f"{low.label} changes the weights {name} by {error:.2g} of their norm: {subnormal:.0%} of them "
        f"lie below its smallest normal number {low.smallest_normal:.2g}, {zeroed:.0%} become zero",
        {"relative_error": error, "limit": limit, "subnormal_share": subnormal, "zeroed_share": zeroed},
    )


def position(node: ir.Node, context: RuleContext) -> Reason | None:
    """Positions and distances between them, which the low precision counts to 2048 (BF16: 256) only."""
    graph, low = context.graph, context.low
    if not any(graph.types.get(name) == FLOAT for name in graph.positions.intersection(output_names(node))):
        return None
    exact = 2**low.significand_bits
    sentence = (
        f"computes with positions, which {low.label} holds exactly to {exact} only, however short the texts"
    )
    return Reason("position", sentence, {"exact_to": exact})


def angle(node: ir.Node, context: RuleContext) -> Reason | None:
    """The angles of cosines and sines: their rounding errors grow with the position."""
    end = context.graph.angles.get(name_of(node))
    if end is None:
        return None
    low, does = context.low, "takes" if end == name_of(node) else f"computes for {end}"
    sentence = (
        f"{does} an angle that grows with the position: at 1000, {low.label} is off by up to "
        f"{1000 * low.roundoff:.2g} radians"
    )
    return Reason("angle", sentence, {"error_at_1000": 1000 * low.roundoff})


def guard(node: ir.Node, context: RuleContext) -> Reason | None:
    """A division whose divisor is kept from 0 by a constant that becomes 0, or loses its bits."""
    found, low = context.graph.guards.get(name_of(node)), context.low
    is_lost = found is not None and 0 < found.value < low.smallest_normal
    if found is None or not is_lost or name_of(node) in context.graph.norms:
        return None
    sentence = (
        f"{found.constant} = {found.value:.2g} keeps the divisor of {found.division} from 0; {low.label}'s "
        f"smallest normal number is {low.smallest_normal:.2g}, and 0/0 is not a number"
    )
    return Reason("guard", sentence, {"guard": found.value, "limit": low.smallest_normal})
