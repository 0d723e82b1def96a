"""Two graphs in one: what each node of the second makes of the first one's values.

Nodes are matched by their names, which a conversion keeps. The combined graph holds the reference, the other
graph as it is, and every node of the other graph a second time, alone: on the reference's tensors as they
arrive in the other graph, that is rounded to the types that they have there. What a node makes of those is
its own error: nothing that went wrong before it is part of it. Nodes that only the other graph has (casts
above all) and integer tensors belong to the node that reads them.

16-bit tensors are emulated as in `fp16_emulation`. Errors are summed inside the graph: the runtime returns
numbers, and of tensors it holds a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.ort_sessions import Feed, open_measuring_session, run
from bertmp.export.graph.types import FLOAT, LOW_TYPES, element_types, opset_of
from bertmp.export.graph.weights import WeightlessGraph, split_weights, tensor_values
from bertmp.export.parity.side_by_side_nodes import (
    ALONE,
    ARRIVES,
    FLOOR,
    MASKED,
    OTHER,
    SAFE,
    Pair,
    arrival_nodes,
    copied_node,
    measuring_nodes,
    needed_nodes,
)
from bertmp.export.precision.fp16_emulation import rounded
from bertmp.export.precision.planner import SAFE_MASK_BIAS
from bertmp.export.precision.ranges import MEASURED, Progress

End = Literal["reference", "alone", "whole", "largest"]
_SUMS: tuple[End, ...] = ("reference", "alone", "whole")
_ENDS: tuple[End, ...] = (*_SUMS, "largest")

_LOW = {low.element: low for low in LOW_TYPES.values()}


@dataclass(frozen=True)
class PairErrors:
    """The errors of every pair over all feeds.

    Attributes:
        own: of the node alone, ‖found − reference‖ / ‖reference‖, FP64 `[pairs]`; infinite where what it made
            is not finite.
        whole: the same for the other graph as it is.
        largest: the reference's largest magnitude, FP64 `[pairs]`.
        worst_own, worst_whole: the feed on which each of the two is largest, INT64 `[pairs]`.
    """

    own: np.ndarray
    whole: np.ndarray
    largest: np.ndarray
    worst_own: np.ndarray
    worst_whole: np.ndarray


class SideBySide:
    """A reference and another graph of the same model, as one graph.

    Args:
        reference: the FP32 graph.
        other: a graph whose nodes have the same names, in any precision.

    Attributes:
        index: the reference, for analysis.
        pairs: what is compared, in the reference's order.
        low: the other graph's 16-bit type; None where it is FP32 throughout.

    Raises:
        InputError: the graphs have too little in common, or one of them has control flow.
    """

    def __init__(self, reference: ModelProto, other: ModelProto) -> None:
        _check_comparable(reference, other)
        mine, theirs = split_weights(reference), split_weights(other)
        self.index = GraphIndex(reference)
        self._types = element_types(theirs.model)
        used = {self._types.get(name) for node in other.graph.node for name in node.output}
        self.low = next((low for element, low in _LOW.items() if element in used), None)
        self.pairs = self._matched(reference, other)
        self._by_other = {pair.other: pair for pair in self.pairs}
        self._graph = self._combined(mine, rounded(theirs))

    def measure(self, feeds: Sequence[Feed], file: str, progress: Progress) -> PairErrors:
        """Runs both graphs.

        Args:
            file: what the feeds are from, for messages.

        Raises:
            InputError: the graphs do not take the feeds.
        """
        wanted = [(pair, end) for pair in self.pairs for end in _ENDS]
        found = self.read(wanted, feeds, file, progress).reshape(len(feeds), len(self.pairs), len(_ENDS))
        norm, alone, whole = found[:, :, : len(_SUMS)].sum(axis=0).T
        by_feed = np.where(np.isfinite(found), found, np.inf).argmax(axis=0)
        return PairErrors(
            own=_relative(alone, norm),
            whole=_relative(whole, norm),
            largest=found[:, :, _ENDS.index("largest")].max(axis=0),
            worst_own=by_feed[:, _ENDS.index("alone")],
            worst_whole=by_feed[:, _ENDS.index("whole")],
        )

    def read(
        self, wanted: Sequence[tuple[Pair, End]], feeds: Sequence[Feed], file: str, progress: Progress
    ) -> np.ndarray:
        """Some numbers of some pairs on every feed; only what they need is computed.

        Args:
            wanted: pairs with what is read of each: the sum of squares of the `reference`, of the error of
                the node `alone` or of the `whole` graph, or the reference's `largest` magnitude.
            file: what the feeds are from, for messages.

        Returns:
            FP64 `[feeds, wanted]`.

        Raises:
            InputError: the graphs do not take the feeds.
        """
        names = [f"{MEASURED}{pair.other}/{end}" for pair, end in wanted]
        session = self._session(names, scalar=True)
        found = np.zeros((len(feeds), len(names)))
        for number, feed in enumerate(feeds):
            progress(number, len(feeds))
            found[number] = run(session, names, feed, file)
        progress(len(feeds), len(feeds))
        return found

    def values(self, pair: Pair, feed: Feed, file: str, *, alone: bool) -> tuple[np.ndarray, np.ndarray]:
        """One tensor on one feed: the reference's, and the other graph's or what its node makes alone."""
        names = [pair.reference, f"{ALONE if alone else OTHER}{pair.other}"]
        expected, found = run(self._session(names), names, feed, file)
        return expected, found

    def _session(self, names: Sequence[str], *, scalar: bool = False) -> Any:
        shape: list[int] | None = [] if scalar else None
        graph, model = self._graph.model.graph, ModelProto()
        model.CopyFrom(self._graph.model)
        nodes = needed_nodes(graph.node, names)
        read = {name for node in nodes for name in node.input}
        del model.graph.output[:], model.graph.node[:], model.graph.initializer[:]
        model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, shape) for name in names)
        model.graph.node.extend(nodes)
        # The runtime drops what nothing reads, and then refuses a value for it.
        model.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
        weights = {name: values for name, values in self._graph.weights.items() if name in read}
        return open_measuring_session(WeightlessGraph(model, weights))

    def _matched(self, reference: ModelProto, other: ModelProto) -> tuple[Pair, ...]:
        masked = {name for path in self.index.masks for name in path.tensors}
        theirs = {node.name: node for node in other.graph.node}
        return tuple(
            Pair(node.name, node.op_type, name, found, _LOW.get(self._types[found]), name in masked)
            for node in reference.graph.node
            if node.op_type != "Constant" and node.name in theirs
            for name, found in zip(node.output, theirs[node.name].output, strict=False)
            if name and self.index.types.get(name) == FLOAT and self._types.get(found) in (FLOAT, *_LOW)
        )

    def _combined(self, mine: WeightlessGraph, theirs: WeightlessGraph) -> WeightlessGraph:
        renamed, weights = _merge_weights(mine, theirs)
        graph = mine.model.graph
        for name, value in ((FLOOR, MASKED), (SAFE, SAFE_MASK_BIAS)):
            graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
        position = {node.name: at for at, node in enumerate(graph.node)}
        own, nodes, emitted, arrived = list(graph.node), [], 0, set[str]()
        inputs = {value.name for value in theirs.model.graph.input}
        kept = {name: name for name in inputs} | renamed
        for node in theirs.model.graph.node:
            # The reference's nodes stand just before what is compared with them: tensors are released early.
            needed = max(emitted, position.get(node.name, -1) + 1)
            nodes += own[emitted:needed]
            emitted = needed
            nodes.append(copied_node(node, OTHER, kept))
            for name in node.input:
                if name in self._by_other and name not in arrived:
                    arrived.add(name)
                    nodes += arrival_nodes(self._by_other[name])
            nodes.append(copied_node(node, ALONE, kept | self._arriving(node)))
            for name in node.output:
                if name in self._by_other:
                    nodes += measuring_nodes(self._by_other[name])
        nodes += own[emitted:]
        del graph.node[:]
        graph.node.extend(nodes)
        return WeightlessGraph(mine.model, weights)

    def _arriving(self, node: NodeProto) -> dict[str, str]:
        """What a node reads → where the reference's values for it are."""
        pairs = [self._by_other[name] for name in node.input if name in self._by_other]
        return {pair.other: f"{ARRIVES}{pair.other}" if pair.low else pair.reference for pair in pairs}


def _check_comparable(reference: ModelProto, other: ModelProto) -> None:
    where = other.graph.name
    mine, theirs = ({node.name for node in graph.graph.node} for graph in (reference, other))
    if 2 * len(mine & theirs) < len(mine):
        what = f"only {len(mine & theirs)} of the {len(mine)} nodes are in both graphs"
        raise InputError(what, where, "compare graphs of the same model, whose nodes have the same names")
    if opset_of(reference) != opset_of(other):
        what = f"the graphs are of opset {opset_of(reference)} and {opset_of(other)}"
        raise InputError(what, where, "compare graphs of the same opset")
    graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    for node in (*reference.graph.node, *other.graph.node):
        if any(attribute.type in graphs for attribute in node.attribute):
            what = f"control flow is not compared: {node.op_type} {node.name}"
            raise InputError(what, where, "compare graphs without it")


def _merge_weights(
    mine: WeightlessGraph, theirs: WeightlessGraph
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Adds the other graph's weights to the reference; equal ones are held once.

    Returns:
        The name of each of the other's weights in the combined graph, and all large weights.
    """
    own = {tensor.name: tensor for tensor in mine.model.graph.initializer}
    names, weights = {}, dict(mine.weights)
    for tensor in theirs.model.graph.initializer:
        if tensor.name in own and _same(tensor, own[tensor.name], mine, theirs):
            names[tensor.name] = tensor.name
            continue
        names[tensor.name] = f"{OTHER}{tensor.name}"
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        mine.model.graph.initializer.append(copy)
    # `rounded` leaves large weights to the session: they have no entry among the initializers of their own.
    for name, values in theirs.weights.items():
        if names[name] != name:
            weights[names[name]] = values
    return names, weights


def _same(tensor: TensorProto, own: TensorProto, mine: WeightlessGraph, theirs: WeightlessGraph) -> bool:
    if tensor.data_type != own.data_type or tensor.dims != own.dims:
        return False
    first = mine.weights[own.name] if own.name in mine.weights else tensor_values(own)
    second = theirs.weights[tensor.name] if tensor.name in theirs.weights else tensor_values(tensor)
    return bool(np.array_equal(first, second))


def _relative(error: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """√(error / norm); 0 where there is no error, infinite where it is not a number or there is no norm."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sqrt(error / norm)
    found[error == 0] = 0
    found[np.isnan(found)] = np.inf
    return np.asarray(found)
