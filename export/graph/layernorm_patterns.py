"""Finding layer normalisations that an exporter took apart into elementary operators.

    mean = ReduceMean(x); d = x − mean; variance = ReduceMean(d²); y = d / √(variance + ε) · weight + bias

with the variants in the wild: d·d or Pow(d, 2), division or multiplication with a reciprocal, Pow(·, ±0.5)
for the root, a difference computed twice, no mean at all (RMS normalisation), and Keras's folded form

    scale = weight / √(variance + ε); y = x · scale + (bias − mean · scale)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

_TO_THE_ROOT = ("Add", "Sqrt", "Pow", "Reciprocal", "Clip", "Max")
"""What stands between the variance and the division: ε, the root, the reciprocal."""

Writers = Mapping[str, NodeProto]
Readers = Mapping[str, Sequence[NodeProto]]


def decomposed_norms(nodes: Sequence[NodeProto], writers: Writers, readers: Readers) -> dict[str, str]:
    """Node name → the normalisation that it is part of, in words.

    Args:
        nodes: in graph order.
        writers, readers: tensor → nodes.
    """
    found: dict[str, str] = {}
    for node in nodes:
        if node.op_type != "ReduceMean" or node.name in found:
            continue
        square = writers.get(node.input[0])
        if square is None or not _is_square(square):
            continue
        members = _members(node, square, writers, readers)
        if members:
            kind = "layer" if any(member.op_type == "Sub" for member in members) else "RMS"
            words = f"a decomposed {kind} normalisation (its variance is {node.name})"
            found.update({member.name: words for member in members})
    return found


def _is_square(node: NodeProto) -> bool:
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.input[0] == node.input[1])


def _members(variance: NodeProto, square: NodeProto, writers: Writers, readers: Readers) -> list[NodeProto]:
    """All nodes of the normalisation; none where what follows the variance is something else."""
    centred = square.input[0]
    difference = writers.get(centred)
    members = [square, variance]
    deviations, centre = {centred}, set()
    if difference is not None and difference.op_type == "Sub":
        mean = writers.get(difference.input[1])
        if mean is not None and mean.op_type == "ReduceMean" and mean.input[0] == difference.input[0]:
            # Some exporters compute the difference twice, once for the squares.
            twins = [n for n in readers.get(mean.output[0], ()) if list(n.input) == list(difference.input)]
            members += [mean, *twins]
            deviations |= {twin.output[0] for twin in twins}
            centre = {mean.input[0], mean.output[0]}
    root = _follow_root(variance, deviations, readers)
    last = root[-1] if root else variance
    quotients = [
        node
        for node in readers.get(last.output[0], ())
        if node.op_type in ("Div", "Mul") and deviations & set(node.input)
    ]
    if not root:
        return []
    if not quotients:
        folded = _folded(last, centre, readers)
        return members + root + folded if folded else []
    return members + root + quotients + [node for q in quotients for node in _affine(q, writers, readers)]


def _follow_root(variance: NodeProto, deviations: set[str], readers: Readers) -> list[NodeProto]:
    """The chain from the variance to what divides: + ε, √, 1/·; empty where there is no root in it."""
    chain: list[NodeProto] = []
    at = variance
    while len(users := readers.get(at.output[0], ())) == 1:
        user = users[0]
        inverse = user.op_type == "Div" and user.input[0] not in deviations
        if user.op_type not in _TO_THE_ROOT and not inverse:
            break
        chain.append(user)
        at = user
    return chain if any(node.op_type in ("Sqrt", "Pow") for node in chain) else []


def _folded(root: NodeProto, centre: set[str], readers: Readers) -> list[NodeProto]:
    """Keras's form behind the root: the scale, its products with x and the mean, and what adds them up.

    Args:
        centre: x and its mean; empty where there is no mean.
    """
    for scale in readers.get(root.output[0], ()):
        products = [
            node
            for node in readers.get(scale.output[0], ())
            if scale.op_type == node.op_type == "Mul" and centre & set(node.input)
        ]
        if len(products) == 2:
            shifts = [user for node in products for user in readers.get(node.output[0], ())]
            tail = [node for node in shifts if node.op_type in ("Sub", "Add")]
            return [scale, *products, *{node.name: node for node in tail}.values()]
    return []


def _affine(quotient: NodeProto, writers: Writers, readers: Readers) -> list[NodeProto]:
    """The multiplication by the weight and the addition of the bias, where they follow."""
    found: list[NodeProto] = []
    at = quotient
    for operator in ("Mul", "Add"):
        users = readers.get(at.output[0], ())
        user = users[0] if len(users) == 1 else None
        if user is None or user.op_type != operator:
            break
        other = user.input[1] if user.input[0] == at.output[0] else user.input[0]
        writer = writers.get(other)
        if writer is not None and writer.op_type != "Constant":
            break
        found.append(user)
        at = user
    return found
