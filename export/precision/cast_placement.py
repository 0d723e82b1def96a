"""Where the casts stand: the nodes that no rule speaks for take the type that costs fewest casts.

A tensor costs one cast where the node that writes it and those that read it do not all run in one type,
however many read it. So the cheapest choice is a minimum cut through the graph, with the FP32 nodes on one
side and the heavy products on the other; it is exact. Weights need no cast: they are stored in the type of
their readers, and a large one in one type where that is possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onnx import NodeProto

from bertmp.export.graph.graph_index import GraphFacts
from bertmp.export.graph.types import FLOAT, reads

Side = Literal["fp32", "low"]

PRODUCTS = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN"))
"""Operators that are worth the conversion: they run low unless a rule forbids it."""

BIG_WEIGHT = 65536
"""Readers of a weight of as many elements run low: in FP32 it would fill twice the memory."""

TWICE = 8
"""Casts that it is worth to store a weight once."""

SMALL_WEIGHT = 1024
"""Elements below which it is no matter."""

INDIFFERENT = frozenset(("Cast", "Shape", "Size"))
"""Operators that read a tensor in whatever type it has: it is never cast for them."""

STILL = frozenset(
    (
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Expand",
        "Tile",
        "Where",
        "IsNaN",
    )
)
"""Operators that change no value and drop none: low they give the same and move half the bytes. TensorRT also
wants the guard against NaN behind a softmax in the type of the product that follows."""

OUTSIDE = ""
"""Stands in a net for the graph's inputs and outputs, which are FP32."""

_FP32_END, _LOW_END = 0, 1
"""The two ends of the network that is cut; every other vertex is a node's name or a tensor's two sides."""


@dataclass(frozen=True)
class Placement:
    """Which nodes run in which type.

    Attributes:
        fp32: names of the FP32 nodes.
        casts: casts that it needs.
        nets: for each tensor that might need a cast, the nodes that write and read it, or `OUTSIDE`.
        of_node: node → its nets, by number.
    """

    fp32: frozenset[str]
    casts: int
    nets: Sequence[frozenset[str]] = field(repr=False)
    of_node: Mapping[str, Sequence[int]] = field(repr=False)

    def casts_if_low(self, name: str) -> int:
        """Casts if this one FP32 node ran low and all others as they do."""
        now = sum(is_cut(net, self.fp32) for net in self._nets_of(name))
        then = sum(is_cut(net, self.fp32 - {name}) for net in self._nets_of(name))
        return self.casts + then - now

    def _nets_of(self, name: str) -> list[frozenset[str]]:
        return [self.nets[number] for number in self.of_node.get(name, ())]


def is_heavy(node: NodeProto, facts: GraphFacts) -> bool:
    """Whether a node runs low unless a rule forbids it: a product, or the reader of a big weight."""
    weights = (facts.constants[name].size for name in node.input if name in facts.constants)
    return node.op_type in PRODUCTS or max(weights, default=0) >= BIG_WEIGHT


def is_placed(node: NodeProto, facts: GraphFacts) -> bool:
    """Whether a node has a precision at all: it computes with FP32 values, or makes some."""
    touched = node.output if node.op_type in INDIFFERENT else (*reads(node), *node.output)
    return any(facts.types.get(name) == FLOAT for name in touched)


def place(facts: GraphFacts, fp32: Iterable[str], low: Iterable[str], prefer: Side = "fp32") -> Placement:
    """The placement with fewest casts.

    Args:
        fp32, low: nodes whose type is settled.
        prefer: of the equally cheap placements, the one with the most nodes in this type; nodes that change
            no value run low where that costs nothing.
    """
    fp32, low = frozenset(fp32), frozenset(low)
    nets, shared = list(_nets(facts)), list(_shared_weights(facts))
    placed = frozenset(node.name for node in facts.wiring.nodes if is_placed(node, facts))
    above = _cut(nets, shared, placed - fp32 - low, fp32, prefer)
    if prefer == "fp32":
        still = {node.name for node in facts.wiring.nodes if node.op_type in STILL} & above
        moved = _cut(nets, shared, frozenset(still), fp32 | (above - still), "low")
        above = (above - still) | moved
    chosen = (above | fp32) & placed
    of_node: dict[str, list[int]] = {}
    for number, net in enumerate(nets):
        for name in net:
            of_node.setdefault(name, []).append(number)
    casts = sum(is_cut(net, chosen) for net in nets)
    return Placement(chosen, casts, nets, of_node)


def is_cut(net: frozenset[str], fp32: frozenset[str]) -> bool:
    """Whether not all members of a net run in one type."""
    above = sum(name in fp32 or name == OUTSIDE for name in net)
    return 0 < above < len(net)


def _nets(facts: GraphFacts) -> Iterable[frozenset[str]]:
    """For each tensor that might have to be cast, who writes and reads it."""
    wiring = facts.wiring
    for name, kind in facts.types.items():
        if kind != FLOAT or name in facts.constants:
            continue
        writer = wiring.writers.get(name)
        members = {
            reader.name for reader in wiring.readers.get(name, ()) if reader.op_type not in INDIFFERENT
        }
        members.add(writer.name if writer else OUTSIDE)
        if name in wiring.outputs:
            members.add(OUTSIDE)
        if len(members) > 1:
            yield frozenset(members)


def _shared_weights(facts: GraphFacts) -> Iterable[frozenset[str]]:
    """For each weight with several readers, who reads it: in two types it would be stored twice."""
    for name, values in facts.constants.items():
        readers = frozenset(reader.name for reader in facts.wiring.readers.get(name, ()))
        if len(readers) > 1 and values.size >= SMALL_WEIGHT:
            yield readers


def _cut(
    nets: Sequence[frozenset[str]],
    shared: Sequence[frozenset[str]],
    free: frozenset[str],
    fp32: frozenset[str],
    prefer: Side,
) -> frozenset[str]:
    """The free nodes on the FP32 side of the minimum cut."""
    import networkx

    network: Any = networkx.DiGraph()
    network.add_nodes_from((_FP32_END, _LOW_END, *free))
    above = fp32 | {OUTSIDE}
    weighed = [*((net, 1) for net in nets), *((net, TWICE) for net in shared)]
    for number, (net, weight) in enumerate(weighed):
        members = {name if name in free else _FP32_END if name in above else _LOW_END for name in net}
        # A net with both ends among its members is cut in any placement.
        if len(members) > 1 and not members >= {_FP32_END, _LOW_END}:
            # One cast however many of them lie on the other side: all flow passes one edge.
            enter, leave = ("in", number), ("out", number)
            network.add_edge(enter, leave, capacity=weight)
            network.add_edges_from((member, enter) for member in members)
            network.add_edges_from((leave, member) for member in members)
    # Of equal cuts, networkx returns the one whose far side, from which the end can be reached, is smallest.
    ends = (_FP32_END, _LOW_END) if prefer == "fp32" else (_LOW_END, _FP32_END)
    _, sides = networkx.minimum_cut(network, *ends)
    return frozenset(free & sides[0 if prefer == "fp32" else 1])
