"""Making a plan: every node of a graph against every rule, and the cheapest placement of the casts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto, NodeProto

from bertmp.core.errors import InputError
from bertmp.export.graph.graph_index import GraphFacts
from bertmp.export.graph.tracing import module_of
from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.graph.weightless import shell_of
from bertmp.export.precision.cast_placement import Placement, Side, is_heavy, is_placed, place
from bertmp.export.precision.masks import rewrites
from bertmp.export.precision.plan import (
    TARGETS,
    NodePlan,
    Precision,
    PrecisionPlan,
    Reason,
    Rewrite,
    Target,
)
from bertmp.export.precision.ranges import Ranges, record
from bertmp.export.precision.rules import Strength, check_patterns, names_node, standard_rules


def make_plan(
    graph: ModelProto,
    pins: Sequence[str] = (),
    *,
    allow: Sequence[str] = (),
    target: Target = "fp16",
    ranges: Ranges | None = None,
    headroom: float = 4.0,
) -> PrecisionPlan:
    """Decides each node's precision; the arguments are `Planner`'s."""
    return Planner(graph, pins, allow=allow, target=target, ranges=ranges, headroom=headroom).plan()


def extremes(planner: Planner) -> tuple[PrecisionPlan, PrecisionPlan]:
    """The two plans with fewest casts that leave most and least in FP32; equal where there is no choice."""
    return planner.plan(), planner.plan(prefer="low")


@dataclass(frozen=True)
class Verdict:
    """What the rules say of one node.

    Attributes:
        reasons: why it should be FP32, the first to name in front; empty where nothing is against the low
            type.
        strength: of the strongest of them; `judged` where there is none.
    """

    reasons: tuple[Reason, ...] = ()
    strength: Strength = "judged"


_ORDER: tuple[Strength, ...] = ("judged", "principle", "must")


class Planner:
    """Plans one graph, as often as wanted: what the rules say of it is found out once.

    Args:
        graph: an FP32 graph whose nodes have names of their own.
        pins: patterns of nodes that the user keeps in FP32.
        allow: patterns of nodes whose normalisation, softmax or reduction the user lets run low.
        target: the low type.
        ranges: the tensors' largest magnitudes; None where they were not measured.
        headroom: the factor by which they have to stay below the low type's largest number.

    Errors: InputError for a pattern that names no node and for an invalid graph.
    """

    def __init__(
        self,
        graph: ModelProto,
        pins: Sequence[str] = (),
        *,
        allow: Sequence[str] = (),
        target: Target = "fp16",
        ranges: Ranges | None = None,
        headroom: float = 4.0,
    ) -> None:
        if target not in TARGETS:
            raise InputError(f"unknown type '{target}'", "--to", f"use {' or '.join(TARGETS)}")
        if not headroom >= 1:
            raise InputError(
                f"a headroom of {headroom:g} lets tensors overflow", "--headroom", "use 1 or more"
            )
        self.nodes = list(graph.graph.node)
        check_patterns(pins, self.nodes, "--keep-fp32")
        check_patterns(allow, self.nodes, f"--allow-{target}")
        self.target, self.headroom = target, headroom
        self.allowed = frozenset(
            node.name for node in self.nodes if any(names_node(pattern, node) for pattern in allow)
        )
        self.facts = GraphFacts.of(
            graph, LOW_TYPES[target], ranges.largest if ranges is not None else {}, headroom
        )
        self.graph_sha256 = fingerprint(graph)
        masked = {name for path in self.facts.masks for name in path.tensors}
        limit = self.facts.low.largest
        self.range_record = record(ranges, graph, limit, masked) if ranges is not None else None
        self.pins = tuple(pins)
        self.placed = frozenset(node.name for node in self.nodes if is_placed(node, self.facts))
        self.heavy = frozenset(node.name for node in self.nodes if is_heavy(node, self.facts)) & self.placed
        self.verdicts, self.rewrites = self._judge()

    def plan(
        self,
        raised: Mapping[str, Reason] | None = None,
        lowered: Collection[str] = (),
        *,
        prefer: Side = "fp32",
    ) -> PrecisionPlan:
        """The plan with fewest casts.

        Args:
            raised: nodes that must be FP32 beyond what the rules say, with why.
            lowered: nodes that must run low; those that a rule forbids for good stay FP32.
            prefer: of equally cheap placements, the one with most nodes in this type.
        """
        raised = raised or {}
        placement = self._place(self.verdicts, raised, lowered, prefer)
        nodes = [self._plan_node(node, placement, raised) for node in self.nodes]
        return PrecisionPlan(
            graph_sha256=self.graph_sha256,
            nodes=tuple(self._with_constants(nodes)),
            target=self.target,
            headroom=self.headroom,
            rewrites=self.rewrites,
            ranges=self.range_record,
        )

    def can_lower(self, name: str) -> bool:
        """Whether a measured error may put this FP32 node into the low type."""
        return self.verdicts.get(name, Verdict()).strength == "judged"

    def _judge(self) -> tuple[dict[str, Verdict], tuple[Rewrite, ...]]:
        """What the rules say, with mask constants replaced only where that saves casts."""
        kept = self._verdicts(())
        proven = rewrites(self.facts)
        if not proven:
            return kept, ()
        replaced = self._verdicts([rewrite.tensor for rewrite in proven])
        before, after = (self._place(verdicts).casts for verdicts in (kept, replaced))
        return (replaced, proven) if after < before else (kept, ())

    def _verdicts(self, rewritten: Collection[str]) -> dict[str, Verdict]:
        rules = standard_rules(self.pins, rewritten)
        verdicts = {}
        for node in self.nodes:
            if node.name not in self.placed:
                continue
            found = [(rule.strength, rule.reason(node, self.facts)) for rule in rules]
            against = [
                (strength, reason)
                for strength, reason in found
                if reason is not None and (strength == "must" or node.name not in self.allowed)
            ]
            if against:
                strength = max((strength for strength, _ in against), key=_ORDER.index)
                verdicts[node.name] = Verdict(tuple(reason for _, reason in against), strength)
        return verdicts

    def _place(
        self,
        verdicts: Mapping[str, Verdict],
        raised: Collection[str] = (),
        lowered: Collection[str] = (),
        prefer: Side = "fp32",
    ) -> Placement:
        firm = {name for name, verdict in verdicts.items() if verdict.strength != "judged"}
        low = set(lowered) - firm
        fp32 = ({*verdicts, *raised} - low) & self.placed
        return place(self.facts, fp32, (low | self.heavy) - fp32, prefer)

    def _plan_node(self, node: NodeProto, placement: Placement, raised: Mapping[str, Reason]) -> NodePlan:
        plan = NodePlan(node.name, node.op_type, module_of(node), "integer")
        if node.name not in self.placed:
            return plan
        if node.name not in placement.fp32:
            return replace(plan, precision=self.target)
        reasons = self.verdicts.get(node.name, Verdict()).reasons
        if node.name in raised:
            reasons += (raised[node.name],)
        return replace(plan, precision="fp32", reasons=reasons or (self._no_gain(node.name, placement),))

    def _no_gain(self, name: str, placement: Placement) -> Reason:
        """Why a node that no rule speaks for is FP32."""
        low, casts, then = self.facts.low.label, placement.casts, placement.casts_if_low(name)
        numbers = {"casts": casts, f"casts_in_{self.target}": then}
        if then > casts:
            sentence = f"lies among FP32 nodes: in {low} it would need {then} casts instead of {casts}"
            return Reason("fp32-neighbours", sentence, numbers)
        return Reason("no-cast-saved", f"{low} would save no cast here: {casts} either way", numbers)

    def _with_constants(self, nodes: Sequence[NodePlan]) -> list[NodePlan]:
        """Constant nodes take the type of their readers: FP32 where one of them is."""
        precision: dict[str, Precision] = {node.name: node.precision for node in nodes}
        wiring, result = self.facts.wiring, []
        for node, plan in zip(self.nodes, nodes, strict=True):
            if node.op_type == "Constant" and node.output[0] in self.facts.constants:
                name = node.output[0]
                readers = {precision[reader.name] for reader in wiring.readers.get(name, ())}
                wide = readers != {self.target} or name in wiring.outputs
                reason = Reason("constant", "holds a constant that FP32 nodes read")
                plan = replace(
                    plan, precision="fp32" if wide else self.target, reasons=(reason,) if wide else ()
                )
            result.append(plan)
        return result


def fingerprint(graph: ModelProto) -> str:
    """SHA-256 of a graph and its weights."""
    shell = shell_of(graph)
    for notes in (shell.metadata_props, shell.graph.value_info):
        del notes[:]  # neither changes what the graph computes
    digest = hashlib.sha256(shell.SerializeToString(deterministic=True))
    for tensor in graph.graph.initializer:
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


__all__ = ["Planner", "Verdict", "extremes", "fingerprint", "make_plan"]
