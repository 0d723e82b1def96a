"""Where casts are inserted: nodes that no rule decides take the type that costs the fewest casts.

A tensor costs one cast where the node that writes it and those that read it do not all run in one type,
however many read it. So the cheapest choice is a minimum cut through the graph, with the FP32 nodes on one
side and the heavy nodes on the other; it is exact. Weights need no cast: they are stored in the type of
their readers, and a large one in one type where that is possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx_ir as ir

from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import (
    DATA_MOVEMENT_OPS,
    DTYPE_AGNOSTIC_OPS,
    MATMUL_OPS,
    input_names,
    name_of,
    output_names,
    read_names,
)
from bertmp.export.graph.types import FLOAT

Side = Literal["fp32", "low"]

BIG_WEIGHT = 65536
"""Readers of a weight of as many elements run low: in FP32 it would fill twice the memory."""

SHARED_WEIGHT_COST = 8
"""Casts that it is worth to store a weight once."""

MIN_SHARED_WEIGHT = 1024
"""Smaller weights may be stored twice."""

LOW_WHERE_FREE = DATA_MOVEMENT_OPS | {"Where", "IsNaN"}
"""Operators that give the same result in the low precision and then move half the bytes. TensorRT also needs
the guard against NaN behind a softmax in the type of the matrix product that follows."""

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
        of_node: node → its nets.
    """

    fp32: frozenset[str]
    casts: int
    nets: Sequence[frozenset[str]] = field(repr=False)
    of_node: Mapping[str, Sequence[frozenset[str]]] = field(repr=False)

    def casts_if_low(self, name: str) -> int:
        """Casts if this one FP32 node ran low and all others as they do."""
        nets = self.of_node.get(name, ())
        now, then = (sum(is_cut(net, fp32) for net in nets) for fp32 in (self.fp32, self.fp32 - {name}))
        return self.casts + then - now


def is_heavy(node: ir.Node, graph: GraphIndex) -> bool:
    """Whether a node runs low unless a rule forbids it: a matrix product, or the reader of a big weight."""
    weights = (graph.constants[name].size for name in input_names(node) if name in graph.constants)
    return node.op_type in MATMUL_OPS or max(weights, default=0) >= BIG_WEIGHT


def is_placed(node: ir.Node, graph: GraphIndex) -> bool:
    """Whether a node has a precision at all: it computes with FP32 values, or makes some."""
    touched = output_names(node)
    if node.op_type not in DTYPE_AGNOSTIC_OPS:
        touched += read_names(node)
    return any(graph.types.get(name) == FLOAT for name in touched)


def place(graph: GraphIndex, fp32: Iterable[str], low: Iterable[str], prefer: Side = "fp32") -> Placement:
    """The placement with fewest casts.

    Args:
        fp32, low: nodes whose type is decided.
        prefer: of the equally cheap placements, the one with the most nodes in this type; data movement
            runs in the low precision where that costs nothing.
    """
    fp32, low = frozenset(fp32), frozenset(low)
    nets, shared = list(_nets(graph)), list(_shared_weights(graph))
    placed = frozenset(name_of(node) for node in graph.nodes if is_placed(node, graph))
    above = _cut(nets, shared, placed - fp32 - low, fp32, prefer)
    if prefer == "fp32":
        movement = {name_of(node) for node in graph.nodes if node.op_type in LOW_WHERE_FREE} & above
        moved = _cut(nets, shared, frozenset(movement), fp32 | (above - movement), "low")
        above = (above - movement) | moved
    chosen = (above | fp32) & placed
    of_node: dict[str, list[frozenset[str]]] = {}
    for net in nets:
        for name in net:
            of_node.setdefault(name, []).append(net)
    return Placement(chosen, sum(is_cut(net, chosen) for net in nets), nets, of_node)


def is_cut(net: frozenset[str], fp32: frozenset[str]) -> bool:
    """Whether not all members of a net run in one type."""
    above = sum(name in fp32 or name == OUTSIDE for name in net)
    return 0 < above < len(net)


def _nets(graph: GraphIndex) -> Iterable[frozenset[str]]:
    """For each tensor that might have to be cast, who writes and reads it."""
    for name, kind in graph.types.items():
        if kind != FLOAT or name in graph.constants:
            continue
        writer = graph.producer(name)
        members = {
            name_of(reader) for reader in graph.readers(name) if reader.op_type not in DTYPE_AGNOSTIC_OPS
        }
        members.add(name_of(writer) if writer else OUTSIDE)
        if name in graph.outputs:
            members.add(OUTSIDE)
        if len(members) > 1:
            yield frozenset(members)


def _shared_weights(graph: GraphIndex) -> Iterable[frozenset[str]]:
    """For each weight with several readers, who reads it: in two types it would be stored twice."""
    for name, values in graph.constants.items():
        readers = frozenset(name_of(reader) for reader in graph.readers(name))
        if len(readers) > 1 and values.size >= MIN_SHARED_WEIGHT:
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
    weighed = [*((net, 1) for net in nets), *((net, SHARED_WEIGHT_COST) for net in shared)]
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
