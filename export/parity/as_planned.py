"""Whether a bundle's low-precision graph is the one that its plan makes of its FP32 graph.

A fault that moves the answers by less than 16 bits do anyway (a weight 1 % off, another epsilon) shows in no
answer. It shows here: the plan is applied again, and both results must have the same nodes and weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from bertmp.core.errors import InputError
from bertmp.export.bundle import CONVERT, FP32_GRAPH, PLAN, Bundle, tool_versions
from bertmp.export.graph.loading import load_graph
from bertmp.export.graph.nodes import blocks_of
from bertmp.export.graph.weights import tensor_values
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.plan import PrecisionPlan

_TOOLS = ("bertmp", "onnx", "onnx-ir")
"""Another version of these may convert a graph in another way."""


@dataclass(frozen=True)
class PlanCheck:
    """A bundle's low-precision graph beside the one that its plan makes.

    Attributes:
        difference: the first difference, with the node and its block; empty where there is none.
        not_compared: why the two were not compared; empty where they were.
    """

    difference: str = ""
    not_compared: str = ""


def check_as_planned(bundle: Bundle) -> PlanCheck | None:
    """Applies the plan again; None without a low-precision graph, or with a graph that cannot be read.

    Raises:
        InputError: the plan is damaged.
    """
    if bundle.low_graph is None:
        return None
    if not (bundle.folder / PLAN).is_file():
        return PlanCheck(not_compared=f"the bundle has no {PLAN}")
    plan = PrecisionPlan.load(bundle.folder / PLAN)
    try:
        exact, found = load_graph(bundle.folder / FP32_GRAPH), load_graph(bundle.lowest_graph)
    except InputError:
        return None  # its own stage fails on it
    try:
        planned = apply_plan(exact, plan)
    except InputError as error:
        return PlanCheck(f"{PLAN} does not belong to {FP32_GRAPH}: {error.what}")
    difference = next(_differences(planned, found, blocks_of(exact)), "")
    # Another version may convert in another way: then a difference is no proof of a fault.
    if difference and (changed := _other_versions(bundle)):
        return PlanCheck(
            not_compared=f"{changed} converted it, and the installed version makes another graph"
        )
    return PlanCheck(difference)


def _other_versions(bundle: Bundle) -> str:
    """The versions that converted the graph, where they are not those that are installed."""
    recorded = bundle.manifest.stages[CONVERT].tools if CONVERT in bundle.manifest.stages else {}
    here = tool_versions(_TOOLS)
    other = [f"{name} {recorded[name]}" for name in _TOOLS if recorded.get(name, here[name]) != here[name]]
    return ", ".join(other)


def _differences(planned: ModelProto, found: ModelProto, blocks: Mapping[str, str]) -> Iterator[str]:
    """Every difference between the two graphs, in the order of their nodes."""
    known, present = _by_name(planned.graph), _by_name(found.graph)
    values, others = _weights(planned.graph), _weights(found.graph)
    seen: set[str] = set()
    for name, node in known.items():
        where = f"{name} in {blocks[name]}" if name in blocks else name
        other = present.get(name)
        if other is None:
            yield f"it lacks {where}"
            continue
        yield from (f"{words} of {where}" for words in _node_differences(node, other))
        for weight in (weight for weight in node.input if weight in values and weight not in seen):
            seen.add(weight)
            if words := _weight_difference(values[weight], others.get(weight)):
                yield f"{words} in {weight} of {where}"
    if added := [name for name in present if name not in known]:
        yield f"the plan does not make {added[0]}"
    if [value.name for value in planned.graph.output] != [value.name for value in found.graph.output]:
        yield "its outputs differ"
    if list(planned.functions) != list(found.functions):
        yield "it has functions of its own"


def _by_name(graph: GraphProto) -> dict[str, NodeProto]:
    return {node.name: node for node in graph.node}


def _weights(graph: GraphProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _node_differences(planned: NodeProto, found: NodeProto) -> Iterator[str]:
    if planned.op_type != found.op_type:
        yield f"{found.op_type} instead of {planned.op_type}: the operator"
    elif list(planned.input) != list(found.input) or list(planned.output) != list(found.output):
        yield "the inputs or outputs"
    known, other = ({one.name: one for one in node.attribute} for node in (planned, found))
    for name in sorted(known.keys() | other.keys()):
        before, after = known.get(name), other.get(name)
        if before != after:
            yield f"{name} {_shown(after)} instead of {_shown(before)}: an attribute"


def _shown(attribute: AttributeProto | None) -> str:
    """An attribute's value, where it is short."""
    if attribute is None:
        return "missing"
    if attribute.type in (AttributeProto.FLOAT, AttributeProto.INT):
        return f"{helper.get_attribute_value(attribute):.6g}"
    return "another value"


def _weight_difference(planned: TensorProto, found: TensorProto | None) -> str:
    """The largest difference between two weights in words; empty where there is none."""
    if found is None:
        return "a missing weight"
    if (planned.data_type, list(planned.dims)) != (found.data_type, list(found.dims)):
        return "another type or shape"
    before, after = tensor_values(planned), tensor_values(found)
    unequal = before != after
    if not unequal.any():
        return ""
    with np.errstate(invalid="ignore"):
        distance = np.abs(after.astype(np.float64) - before.astype(np.float64))
    at = np.unravel_index(
        int(np.where(unequal, np.nan_to_num(distance, nan=np.inf), -1).argmax()), before.shape
    )
    share = f"{int(unequal.sum()):,} of {before.size:,} values"
    return f"{share}, most {float(after[at]):.6g} instead of {float(before[at]):.6g},"
