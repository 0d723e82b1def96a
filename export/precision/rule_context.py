"""What the rules of a plan look at and return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import onnx_ir as ir

from bertmp.export.graph.exact_values import nodes_reached_by
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.types import LowType
from bertmp.export.precision.plan import Reason

Strength = Literal["hard", "policy", "heuristic"]
"""What overrules a rule. hard: nothing, since the graph would be wrong, on these or on other inputs; policy:
the user (`--allow-fp16`); heuristic: the user, or a search that measures the error."""


@dataclass(frozen=True)
class RuleContext:
    """What the rules may look at beside the node.

    Attributes:
        graph: its nodes, types, constants and patterns.
        low: the low precision of the plan.
        largest: tensor → largest magnitude on `inputs`; empty where it was not measured.
        headroom: how many times a tensor's largest magnitude must fit into the low precision's range.
        pins: patterns of nodes that the user keeps in FP32.
        rewritten: mask constants that get another value; the tensors on their paths have other ranges then.
        judged: what is known of the weights that `small_weights` has looked at.
        inputs: what was run to measure, in words.
    """

    graph: GraphIndex
    low: LowType
    largest: Mapping[str, float]
    headroom: float
    pins: Sequence[str] = ()
    rewritten: frozenset[str] = frozenset()
    judged: dict[str, Reason | None] = field(default_factory=dict)
    inputs: str = "real inputs"

    @cached_property
    def reached_by(self) -> Mapping[str, tuple[str, float]]:
        """Node → a constant beyond the range that may reach it, and its value.

        The paths of masks to softmaxes are left out: they have a rule of their own.
        """
        graph = self.graph
        on_mask_paths = {name for path in graph.masks for name in (*path.nodes, *path.softmaxes)}
        found: dict[str, tuple[str, float]] = {}
        for constant, values in graph.constants.items():
            if values.size == 0 or constant in self.rewritten:
                continue
            extreme = max(float(values.min()), float(values.max()), key=abs)
            if abs(extreme) > self.low.largest:
                reached = nodes_reached_by(constant, graph.nodes, graph.types, frozenset(graph.norms))
                found.update({name: (constant, extreme) for name in reached if name not in on_mask_paths})
        return found


Rule = Callable[[ir.Node, RuleContext], Reason | None]
"""Why a node must stay FP32; None where the rule has nothing against the low precision."""
