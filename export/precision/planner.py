"""Making a plan: every node of a graph against every rule, and the cheapest placement of the casts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import module_of, name_of, output_names
from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.graph.weights import in_memory, without_initializers
from bertmp.export.precision.cast_placement import Placement, Side, is_heavy, is_placed, place
from bertmp.export.precision.mask_rewrites import mask_rewrites
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
from bertmp.export.precision.rules import (
    RuleContext,
    Strength,
    check_patterns,
    names_node,
    standard_rules,
)

_BY_STRENGTH: tuple[Strength, ...] = ("heuristic", "policy", "hard")


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


@dataclass(frozen=True)
class RuleVerdict:
    """What the rules found against running one node in the low precision.

    Attributes:
        reasons: why it should be FP32, in the order of the rules; empty where there are none.
        strength: of the strongest of them; `heuristic` where there is none.
    """

    reasons: tuple[Reason, ...] = ()
    strength: Strength = "heuristic"


class Planner:
    """Makes plans for one graph; the rules are evaluated once.

    Args:
        graph: an FP32 graph whose nodes have unique names.
        pins: patterns of nodes that the user keeps in FP32.
        allow: patterns of nodes whose normalisation, softmax or reduction may run in low precision.
        target: the low precision.
        ranges: the tensors' largest magnitudes; None where they were not measured.
        headroom: how many times a tensor's largest magnitude must fit into the low precision's range.

    Raises:
        InputError: a pattern matches no node, or the graph is invalid.
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
            raise InputError(f"unknown type '{target}'", "--precision", f"use {' or '.join(TARGETS)}")
        if not headroom >= 1:
            raise InputError(
                f"a headroom of {headroom:g} lets tensors overflow", "--headroom", "use 1 or more"
            )
        self.graph = GraphIndex(graph)
        self.nodes = self.graph.nodes
        check_patterns(pins, self.nodes, "--keep-fp32")
        check_patterns(allow, self.nodes, f"--allow-{target}")
        self.target, self.headroom = target, headroom
        self.low = LOW_TYPES[target]
        self.allowed = frozenset(
            name_of(node) for node in self.nodes if any(names_node(pattern, node) for pattern in allow)
        )
        self.context = RuleContext(self.graph, self.low, ranges.largest if ranges else {}, headroom)
        self.graph_sha256 = graph_sha256(graph)
        self.range_record = record(ranges, self.graph, self.low.largest) if ranges is not None else None
        self.pins = tuple(pins)
        self.placed = frozenset(name_of(node) for node in self.nodes if is_placed(node, self.graph))
        heavy = frozenset(name_of(node) for node in self.nodes if is_heavy(node, self.graph))
        self.heavy = heavy & self.placed
        self.verdicts, self.rewrites = self._evaluate_rules()

    def plan(
        self,
        promoted: Mapping[str, Reason] | None = None,
        demoted: Collection[str] = (),
        *,
        prefer: Side = "fp32",
    ) -> PrecisionPlan:
        """The plan with the fewest casts.

        Args:
            promoted: nodes that must be FP32 beyond what the rules require, with the reason.
            demoted: nodes that must run in the low precision; those with a hard or policy reason stay FP32.
            prefer: of equally cheap placements, the one with most nodes in this type.
        """
        promoted = promoted or {}
        placement = self._place(self.verdicts, promoted, demoted, prefer)
        nodes = [self._plan_node(node, placement, promoted) for node in self.nodes]
        return PrecisionPlan(
            graph_sha256=self.graph_sha256,
            nodes=tuple(self._with_constants(nodes)),
            target=self.target,
            headroom=self.headroom,
            rewrites=self.rewrites,
            ranges=self.range_record,
        )

    def can_demote(self, name: str) -> bool:
        """Whether a measured error may put this FP32 node into the low precision."""
        return self.verdicts.get(name, RuleVerdict()).strength == "heuristic"

    def _evaluate_rules(self) -> tuple[dict[str, RuleVerdict], tuple[Rewrite, ...]]:
        """The rules' verdicts, with mask constants replaced only where that saves casts."""
        kept = self._verdicts(())
        rewrites = mask_rewrites(self.context)
        if not rewrites:
            return kept, ()
        replaced = self._verdicts([rewrite.tensor for rewrite in rewrites])
        before, after = (self._place(verdicts).casts for verdicts in (kept, replaced))
        return (replaced, rewrites) if after < before else (kept, ())

    def _verdicts(self, rewritten: Collection[str]) -> dict[str, RuleVerdict]:
        rules = standard_rules(self.pins, rewritten)
        verdicts = {}
        for node in self.nodes:
            name = name_of(node)
            if name not in self.placed:
                continue
            applied = [rule for rule in rules if rule.strength == "hard" or name not in self.allowed]
            found = [(rule.strength, rule.reason(node, self.context)) for rule in applied]
            against = [(strength, reason) for strength, reason in found if reason is not None]
            if against:
                strength = max((strength for strength, _ in against), key=_BY_STRENGTH.index)
                verdicts[name] = RuleVerdict(tuple(reason for _, reason in against), strength)
        return verdicts

    def _place(
        self,
        verdicts: Mapping[str, RuleVerdict],
        promoted: Collection[str] = (),
        demoted: Collection[str] = (),
        prefer: Side = "fp32",
    ) -> Placement:
        fixed = {name for name, verdict in verdicts.items() if verdict.strength != "heuristic"}
        low = set(demoted) - fixed
        fp32 = ({*verdicts, *promoted} - low) & self.placed
        return place(self.graph, fp32, (low | self.heavy) - fp32, prefer)

    def _plan_node(self, node: ir.Node, placement: Placement, promoted: Mapping[str, Reason]) -> NodePlan:
        name = name_of(node)
        plan = NodePlan(name, node.op_type, module_of(node), "integer")
        if name not in self.placed:
            return plan
        if name not in placement.fp32:
            return replace(plan, precision=self.target)
        reasons = self.verdicts.get(name, RuleVerdict()).reasons
        if name in promoted:
            reasons += (promoted[name],)
        return replace(plan, precision="fp32", reasons=reasons or (self._no_gain(name, placement),))

    def _no_gain(self, name: str, placement: Placement) -> Reason:
        """Why a node that no rule decides is FP32."""
        low, casts, if_low = self.low.label, placement.casts, placement.casts_if_low(name)
        numbers = {"casts": casts, f"casts_in_{self.target}": if_low}
        if if_low > casts:
            sentence = f"its neighbours are FP32: {low} would need {if_low} casts instead of {casts}"
            return Reason("fp32-neighbours", sentence, numbers)
        return Reason("no-cast-saved", f"{low} would save no cast here: {casts} either way", numbers)

    def _with_constants(self, nodes: Sequence[NodePlan]) -> list[NodePlan]:
        """Constant nodes take the type of their readers: FP32 where one of them is FP32."""
        precision: dict[str, Precision] = {node.name: node.precision for node in nodes}
        reason = Reason("constant", "holds a constant that FP32 nodes read")
        result = []
        for node, plan in zip(self.nodes, nodes, strict=True):
            output = output_names(node)[0] if node.op_type == "Constant" else ""
            if output in self.graph.constants:
                readers = {precision[name_of(reader)] for reader in self.graph.readers(output)}
                if readers != {self.target} or output in self.graph.outputs:
                    plan = replace(plan, precision="fp32", reasons=(reason,))
                else:
                    plan = replace(plan, precision=self.target, reasons=())
            result.append(plan)
        return result


def graph_sha256(graph: ModelProto) -> str:
    """SHA-256 of a graph and its weights."""
    bare = without_initializers(graph)
    for unused in (bare.metadata_props, bare.graph.value_info):
        del unused[:]  # neither changes what the graph computes
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    for tensor in graph.graph.initializer:
        digest.update(in_memory(tensor).SerializeToString(deterministic=True))
    return digest.hexdigest()
