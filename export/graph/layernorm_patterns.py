"""Finding layer normalisations that an exporter decomposed into elementary operators.

    mean = ReduceMean(x); d = x − mean; variance = ReduceMean(d²); y = d / √(variance + ε) · weight + bias

with the variants in the wild: d·d or Pow(d, 2), division or multiplication with a reciprocal, Pow(·, ±0.5)
for the root, a difference computed twice, no mean at all (RMS normalisation), and Keras's folded form

    scale = weight / √(variance + ε); y = x · scale + (bias − mean · scale)
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bertmp.export.graph.use_def import name_of, readers_of

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
