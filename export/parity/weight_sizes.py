"""What the weights of a bundle's two graphs take, held to the precision plan rather than to a fixed share.

A file's size says little of a small model, where the nodes' names fill it, and of a plan that keeps many
weights in FP32: here only weights count, and those that the plan keeps in FP32 do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, NodeProto, helper

from bertmp.export.bundle import FP32_GRAPH, PLAN, Bundle
from bertmp.export.graph.nodes import DTYPE_AGNOSTIC_OPS
from bertmp.export.graph.weights import is_large
from bertmp.export.precision.plan import PrecisionPlan


@dataclass(frozen=True)
class WeightSizes:
    """The large floating-point weights of a bundle, in bytes; those of biases and constants are left out.

    Attributes:
        planned: what the weights that the plan puts into 16 bits take in the FP32 graph.
        kept: what those that the plan keeps in FP32 take there; a weight that is read in both is in both.
        low: what all weights take in the low-precision graph.
    """

    planned: int
    kept: int
    low: int

    @property
    def ratio(self) -> float | None:
        """What the planned weights take of their size in FP32, one half if done; None if none is planned."""
        return (self.low - self.kept) / self.planned if self.planned else None


def weight_sizes(bundle: Bundle) -> WeightSizes | None:
    """Reads the weights' shapes and types of both graphs; None where the bundle lacks a graph or the plan.

    A graph that cannot be read gives None as well: its stage fails on it.

    Raises:
        InputError: the plan is damaged.
    """
    plan_file = bundle.folder / PLAN
    if bundle.low_graph is None or not plan_file.is_file():
        return None
    plan = PrecisionPlan.load(plan_file)
    try:
        exact = onnx.load(bundle.folder / FP32_GRAPH, load_external_data=False).graph
        sizes, readers = _sizes(exact), _readers(exact, {node.name: node.precision for node in plan.nodes})
        del exact  # of a large model only one graph is in memory
        low = sum(_sizes(onnx.load(bundle.lowest_graph, load_external_data=False).graph).values())
    except (DecodeError, OSError):
        return None
    return WeightSizes(
        planned=sum(size for name, size in sizes.items() if readers["low", name]),
        kept=sum(size for name, size in sizes.items() if readers["fp32", name]),
        low=low,
    )


def _sizes(graph: GraphProto) -> Mapping[str, int]:
    """Weight → bytes, for those that are too large to be a bias or a constant."""
    return {
        tensor.name: math.prod(tensor.dims) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
        for tensor in graph.initializer
        if is_large(tensor)
    }


def _readers(graph: GraphProto, precision: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """(`low` or `fp32`, tensor) → how many nodes read it so; a graph output is read in FP32."""
    counts = Counter(("fp32", value.name) for value in graph.output)
    for node in graph.node:
        in_fp32 = precision.get(node.name) == "fp32" or node.op_type in DTYPE_AGNOSTIC_OPS
        counts.update(("fp32" if in_fp32 else "low", name) for name in _read_by(node))
    return counts


def _read_by(node: NodeProto) -> Iterator[str]:
    """Every name that a node and its subgraphs read."""
    yield from node.input
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            for inner in graph.node:
                yield from _read_by(inner)
