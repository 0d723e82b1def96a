"""One session that runs a graph with any group of its nodes in the low precision, all else in FP32.

A session for each group would take longer to open than to run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from bertmp.export.graph.nodes import DTYPE_AGNOSTIC_OPS, EXACT_OPS
from bertmp.export.graph.ort_sessions import Feed, open_measuring_session, run
from bertmp.export.graph.types import FLOAT, LOW_TYPES, LowType, element_types
from bertmp.export.graph.weights import WeightlessGraph
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import PrecisionPlan

_SWITCH = "switch/"
"""Begins the names of the inputs that say whether a group runs in the low precision."""


class SwitchedGraph:
    """A graph whose groups of nodes can be switched to the low precision.

    Each node of a group becomes an If: on one side the node as it is, on the other with all that it reads
    and writes rounded. What overflows becomes infinite.

    Args:
        graph: the FP32 graph; it is changed.
        groups: names of the nodes of each group; no node is in two.
        low: the low precision.
    """

    def __init__(self, graph: WeightlessGraph, groups: Sequence[Collection[str]], low: LowType) -> None:
        group_of = {name: number for number, names in enumerate(groups) for name in names}
        proto, types = graph.model.graph, element_types(graph.model)
        nodes = [
            _switched(node, f"{_SWITCH}{group_of[node.name]}", types, low) if node.name in group_of else node
            for node in proto.node
        ]
        del proto.node[:]
        proto.node.extend(nodes)
        self._switches = [f"{_SWITCH}{number}" for number in range(len(groups))]
        proto.input.extend(
            helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in self._switches
        )
        self._session = open_measuring_session(graph)

    def run(self, low: Collection[int], outputs: Sequence[str], feed: Feed, file: str) -> list[np.ndarray]:
        """The outputs for one feed with some groups in the low precision.

        Args:
            low: the groups.
            file: what the feed is from, for messages.

        Raises:
            InputError: the graph does not take the feed.
        """
        on = {name: np.array(number in low) for number, name in enumerate(self._switches)}
        return run(self._session, outputs, {**feed, **on}, file)


class GroupErrors:
    """The errors of groups of nodes in the low precision, all else in FP32, on a few of the examples.

    Args:
        evaluator: for the graph and its examples.
        plan: says the low precision, and which constants are replaced.
        groups: as in `SwitchedGraph`.
        tokens: about how many tokens are run, of the shortest examples.
    """

    def __init__(
        self, evaluator: Evaluator, plan: PrecisionPlan, groups: Sequence[Collection[str]], tokens: int
    ) -> None:
        self._evaluator, calibration = evaluator, evaluator.calibration
        self._graph = SwitchedGraph(evaluator.applied(all_fp32(plan)), groups, LOW_TYPES[plan.target])
        self._feeds, self._file = calibration.fp32_feeds, calibration.file
        self._shortest = calibration.shortest(tokens)

    def measure(self, low: Collection[int], feeds: Sequence[int] = ()) -> float:
        """The largest change of any output value.

        Args:
            low: the groups in the low precision.
            feeds: the numbers of feeds that are run beside the shortest.

        Raises:
            InputError: the examples do not fit the graph's inputs, or the FP32 outputs are not finite.
        """
        outputs = self._evaluator.outputs
        found = {
            number: self._graph.run(low, outputs, self._feeds[number], self._file)
            for number in dict.fromkeys([*self._shortest, *feeds])
        }
        return self._evaluator.judge(found).max_error


def all_fp32(plan: PrecisionPlan) -> PrecisionPlan:
    """The plan with every node in FP32."""
    return plan.with_precision([node.name for node in plan.nodes if node.precision != "integer"], "fp32")


def _switched(node: NodeProto, switch: str, types: Mapping[str, int], low: LowType) -> NodeProto:
    """The node in both precisions, and the choice between them."""
    written = [name for name in node.output if name]
    prefix = f"{node.name}/{low.name}"
    return helper.make_node(
        "If",
        [switch],
        written,
        name=f"{node.name}/switch",
        then_branch=_branch(list(_low_form(node, prefix, types, low)), written, prefix, types),
        else_branch=_branch([_renamed(node, f"{node.name}/fp32")], written, f"{node.name}/fp32", types),
    )


def _branch(nodes: list[NodeProto], written: list[str], prefix: str, types: Mapping[str, int]) -> GraphProto:
    outputs = [helper.make_tensor_value_info(f"{prefix}/{name}", types[name], None) for name in written]
    return helper.make_graph(nodes, prefix, [], outputs)


def _renamed(node: NodeProto, prefix: str) -> NodeProto:
    """The node with outputs of its own: a branch must not write what the graph around it has."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{prefix}/{node.name}"
    copy.output[:] = [f"{prefix}/{name}" if name else "" for name in node.output]
    return copy


def _low_form(node: NodeProto, prefix: str, types: Mapping[str, int], low: LowType) -> Iterator[NodeProto]:
    """The node on rounded inputs, and the rounding of what it writes."""
    copy = _renamed(node, prefix)
    if node.op_type not in DTYPE_AGNOSTIC_OPS:
        read = {name: f"{prefix}/{name}/read" for name in node.input if types.get(name) == FLOAT}
        for name, out in read.items():
            yield from _rounding(name, out, low)
        copy.input[:] = [read.get(name, name) for name in node.input]
    for attribute in copy.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
            values = low.rounded(numpy_helper.to_array(attribute.t)).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
    roundings: list[NodeProto] = []
    for position, name in enumerate(node.output):
        if name and types.get(name) == FLOAT and node.op_type not in EXACT_OPS:
            copy.output[position] = f"{prefix}/{name}/exact"
            roundings += _rounding(copy.output[position], f"{prefix}/{name}", low)
    yield copy
    yield from roundings


def _rounding(name: str, out: str, low: LowType) -> list[NodeProto]:
    return [
        helper.make_node("Cast", [name], [f"{out}/low"], name=f"{out}/low", to=low.element),
        helper.make_node("Cast", [f"{out}/low"], [out], name=f"{out}/rounded", to=FLOAT),
    ]
