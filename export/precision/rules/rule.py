"""What a rule is."""

from __future__ import annotations

from typing import Literal, Protocol

from onnx import NodeProto

from bertmp.export.graph.graph_index import GraphFacts
from bertmp.export.precision.plan import Reason

Strength = Literal["must", "principle", "judged"]
"""How a rule's verdict may be lifted: never (the graph would be wrong, or may be on other texts), when the
user asks for it, or also where the measured error allows it."""


class Rule(Protocol):
    """A reason to keep nodes in FP32."""

    @property
    def strength(self) -> Strength:
        """Who may overrule it."""

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        """Why `node` must stay FP32; None where this rule has nothing against the low type."""
