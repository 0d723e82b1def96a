"""What a rule is, and what it may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import onnx_ir as ir

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
        largest: tensor → largest magnitude on real inputs; empty where it was not measured.
        headroom: how many times a tensor's largest magnitude must fit into the low precision's range.
    """

    graph: GraphIndex
    low: LowType
    largest: Mapping[str, float] = field(default_factory=dict)
    headroom: float = 4.0


class Rule(Protocol):
    """A reason to keep nodes in FP32."""

    @property
    def strength(self) -> Strength:
        """What overrules it."""

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        """Why `node` must stay FP32; None where this rule has nothing against the low precision."""
