"""The nodes of two graphs in one: copies, what arrives at them, and the sums that measure them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto, helper

from bertmp.export.graph.types import FLOAT, LowType
from bertmp.export.precision.ranges import MEASURED

OTHER, ALONE, ARRIVES = "other/", "alone/", "arrives/"
FLOOR, MASKED = f"{MEASURED}floor", -4096.0
"""Masked scores are compared as this number: how far below the others they lie changes no softmax."""
SAFE = f"{MEASURED}safe_mask"


@dataclass(frozen=True)
class Pair:
    """A floating-point tensor that both graphs compute.

    Attributes:
        node, op: the node that writes it, in the reference.
        reference, other: the tensor's name in the one graph and in the other.
        low: its 16-bit type in the other graph; None for FP32.
        masked: whether it holds a mask's large numbers.
    """

    node: str
    op: str
    reference: str
    other: str
    low: LowType | None
    masked: bool


def needed_nodes(nodes: Sequence[NodeProto], names: Sequence[str]) -> list[NodeProto]:
    """The nodes that `names` depend on, in their order."""
    wanted, kept = set(names), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def copied_node(node: NodeProto, prefix: str, names: Mapping[str, str]) -> NodeProto:
    """A node under another name; what it reads is in `names` or has the prefix, too."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{prefix}{node.name}"
    copy.input[:] = [names.get(name, f"{prefix}{name}") if name else "" for name in node.input]
    copy.output[:] = [f"{prefix}{name}" if name else "" for name in node.output]
    return copy


def arrival_nodes(pair: Pair) -> Iterator[NodeProto]:
    """The reference's tensor, rounded to the type that it has in the other graph."""
    if pair.low is None:
        return
    at, name = f"{ARRIVES}{pair.other}", pair.reference
    if pair.masked:  # the other graph may have a smaller constant, so that nothing overflows
        yield helper.make_node("Max", [name, SAFE], [f"{at}/safe"], name=f"{at}/safe")
        name = f"{at}/safe"
    yield helper.make_node("Cast", [name], [f"{at}/low"], name=f"{at}/low", to=pair.low.element)
    yield helper.make_node("Cast", [f"{at}/low"], [at], name=at, to=FLOAT)


def measuring_nodes(pair: Pair) -> Iterator[NodeProto]:
    """The sums of squares of the reference, of the node's own error and of the whole error; the largest."""
    at, names = f"{MEASURED}{pair.other}", [pair.reference, f"{ALONE}{pair.other}", f"{OTHER}{pair.other}"]
    if pair.masked:
        for position, name in enumerate(names):
            names[position] = f"{at}/raised_{position}"
            yield helper.make_node("Max", [name, FLOOR], [names[position]], name=names[position])
    for end, operator, inputs in (
        ("alone_error", "Sub", [names[1], names[0]]),
        ("whole_error", "Sub", [names[2], names[0]]),
        ("magnitude", "Abs", [names[0]]),
    ):
        yield helper.make_node(operator, inputs, [f"{at}/{end}"], name=f"{at}/{end}")
    for end, operator, source in (
        ("reference", "ReduceSumSquare", names[0]),
        ("alone", "ReduceSumSquare", f"{at}/alone_error"),
        ("whole", "ReduceSumSquare", f"{at}/whole_error"),
        ("largest", "ReduceMax", f"{at}/magnitude"),
    ):
        yield helper.make_node(operator, [source], [f"{at}/{end}"], name=f"{at}/{end}", keepdims=0)
