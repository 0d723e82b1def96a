"""Making a plan: every node of a graph against every rule, and the cheapest placement of the casts.

Attention-mask constants that the low precision cannot add to a score may be replaced. FP16 cannot hold most
of them, nor the sum of any of them and a negative score. Two ways keep the result equal: the addition stays
FP32 (nothing changes), or the constant becomes one whose sum with any score stays in range and whose
exponential is still exactly 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.export.export_options import PrecisionOptions
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import (
    DTYPE_AGNOSTIC_OPS,
    input_names,
    module_of,
    name_of,
    output_names,
    readers_of,
)
from bertmp.export.graph.patterns import MASK_MOVING_OPS, MaskPath
from bertmp.export.graph.types import FLOAT, LOW_TYPES
from bertmp.export.graph.weights import in_memory, without_initializers
from bertmp.export.precision.cast_placement import Placement, Side, is_heavy, is_placed, place
from bertmp.export.precision.plan import NodePlan, Precision, PrecisionPlan, Reason, Rewrite
from bertmp.export.precision.ranges import Ranges, record
from bertmp.export.precision.rule_context import RuleContext, Strength
from bertmp.export.precision.rules import RULES, check_patterns, names_node

_BY_STRENGTH: tuple[Strength, ...] = ("heuristic", "policy", "hard")

SAFE_MASK_BIAS = -16384.0
"""What replaces a mask constant: a power of two, so exact in every type, also after a multiplication by 1."""

EXP_UNDERFLOW = -110.0
"""exp of this and of anything less is exactly 0 in FP32, whose smallest number is exp(-103.3)."""


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
        options: which type, headroom and nodes the user wants; what it says of measuring is not read.
        ranges: the tensors' largest magnitudes; None where they were not measured.

    Raises:
        InputError: a pattern matches no node, or the graph is invalid.
    """

    def __init__(self, graph: ModelProto, options: PrecisionOptions, ranges: Ranges | None = None) -> None:
        self.target, headroom = options.precision, options.headroom
        if not headroom >= 1:
            what = f"a headroom of {headroom:g} lets tensors overflow"
            raise InputError(what, "--headroom", "use 1 or more")
        self.graph = GraphIndex(graph)
        self.nodes = self.graph.nodes
        check_patterns(options.keep_fp32, self.nodes, "--keep-fp32")
        check_patterns(options.allow_fp16, self.nodes, f"--allow-{self.target}")
        self.low = LOW_TYPES[self.target]
        self.allowed = frozenset(
            name_of(node)
            for node in self.nodes
            if any(names_node(pattern, node) for pattern in options.allow_fp16)
        )
        largest = ranges.largest if ranges else {}
        made_up = ranges is not None and ranges.origin.source == "vocabulary"
        self.context = RuleContext(
            self.graph,
            self.low,
            largest,
            headroom,
            options.keep_fp32,
            inputs="made-up inputs" if made_up else "real inputs",
        )
        # Scores on made-up inputs say too little of those on text to change a constant for them.
        self.may_rewrite = not made_up
        self.graph_sha256 = graph_sha256(graph)
        self.range_record = record(ranges, self.graph, self.low.largest) if ranges is not None else None
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
        return PrecisionPlan(
            graph_sha256=self.graph_sha256,
            nodes=tuple(self._plan_node(node, placement, promoted) for node in self.nodes),
            target=self.target,
            headroom=self.context.headroom,
            rewrites=self.rewrites,
            ranges=self.range_record,
        )

    def can_demote(self, name: str) -> bool:
        """Whether a measured error may put this FP32 node into the low precision."""
        return self.verdicts.get(name, RuleVerdict()).strength == "heuristic"

    def _evaluate_rules(self) -> tuple[dict[str, RuleVerdict], tuple[Rewrite, ...]]:
        """The rules' verdicts, with mask constants replaced only where that saves casts."""
        kept = self._verdicts(self.context)
        rewrites = mask_rewrites(self.context) if self.may_rewrite else ()
        if not rewrites:
            return kept, ()
        rewritten = frozenset(rewrite.tensor for rewrite in rewrites)
        replaced = self._verdicts(replace(self.context, rewritten=rewritten))
        before, after = (self._place(verdicts).casts for verdicts in (kept, replaced))
        return (replaced, rewrites) if after < before else (kept, ())

    def _verdicts(self, context: RuleContext) -> dict[str, RuleVerdict]:
        verdicts = {}
        for node in self.nodes:
            name = name_of(node)
            if name not in self.placed:
                continue
            against = [
                (strength, reason)
                for rule, strength in RULES
                if (strength == "hard" or name not in self.allowed) and (reason := rule(node, context))
            ]
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
        reasons: tuple[Reason, ...] = ()
        precision = self._precision(name, placement)
        output = output_names(node)[0] if node.op_type == "Constant" else ""
        if output in self.graph.constants:
            # Constant nodes take the type of their readers: FP32 where one of them is FP32.
            readers = {self._precision(name_of(one), placement) for one in self.graph.readers(output)}
            precision = self.target
            if readers != {self.target} or output in self.graph.outputs:
                precision = "fp32"
                reasons = (Reason("constant", "holds a constant that FP32 nodes read"),)
        elif precision == "fp32":
            reasons = self.verdicts.get(name, RuleVerdict()).reasons
            reasons += (promoted[name],) if name in promoted else ()
            reasons = reasons or (self._no_gain(name, placement),)
        return NodePlan(name, node.op_type, module_of(node), precision, reasons)

    def _precision(self, name: str, placement: Placement) -> Precision:
        if name not in self.placed:
            return "integer"
        return "fp32" if name in placement.fp32 else self.target

    def _no_gain(self, name: str, placement: Placement) -> Reason:
        """Why a node that no rule decides is FP32."""
        low, casts, if_low = self.low.label, placement.casts, placement.casts_if_low(name)
        numbers = {"casts": casts, f"casts_in_{self.target}": if_low}
        if if_low > casts:
            sentence = f"its neighbours are FP32: {low} would need {if_low} casts instead of {casts}"
            return Reason("fp32-neighbours", sentence, numbers)
        return Reason("no-cast-saved", f"{low} would save no cast here: {casts} either way", numbers)


def graph_sha256(graph: ModelProto) -> str:
    """SHA-256 of a graph and its weights."""
    bare = without_initializers(graph)
    for unused in (bare.metadata_props, bare.graph.value_info):
        del unused[:]  # neither changes what the graph computes
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    for tensor in graph.graph.initializer:
        digest.update(in_memory(tensor).SerializeToString(deterministic=True))
    return digest.hexdigest()


def mask_rewrites(context: RuleContext) -> tuple[Rewrite, ...]:
    """The mask constants that may be replaced, each with the justification that the result stays the same.

    What has to hold: between the constant and the sum with the scores stand only operators that move values
    or choose between them, or a multiplication with a mask of zeros and ones; it is added once; and the
    scores' largest magnitude B on real inputs leaves a margin on both sides, with headroom h:

        replacement + 2·h·B ≤ −110, so that every masked term's exponential is exactly 0
        replacement − h·B ≥ −largest, so that no sum overflows

    Empty without measured ranges.
    """
    found = (_rewrite(path, context) for path in context.graph.masks if path.may_overflow(context.low))
    return tuple(rewrite for rewrite in found if rewrite is not None)


def _rewrite(path: MaskPath, context: RuleContext) -> Rewrite | None:
    graph, low = context.graph, context.low
    values = graph.constants.get(path.constant)
    if values is None or path.value > 0 or not np.all((values == path.value) | (values == 0)):
        return None
    if _has_other_readers(path, graph):
        return None
    bounds = []
    for node in (node for node in graph.nodes if node.name in path.nodes):
        others = [name for name in input_names(node) if name not in path.tensors]
        if node.op_type in ("Add", "Where") and _joins_softmax(node, path):
            scores = [name for name in others if graph.types.get(name) == FLOAT]
            if len(scores) != 1 or scores[0] not in context.largest:
                return None
            bounds.append(context.largest[scores[0]])
        elif node.op_type == "Mul":
            if not all(_is_indicator(name, context) for name in others):
                return None
        elif node.op_type == "Where":
            if not all(_is_all(name, 0, context) for name in others if name != input_names(node)[0]):
                return None
        elif node.op_type not in MASK_MOVING_OPS:
            return None
    if not bounds:
        return None
    bound = max(bounds) * context.headroom
    if SAFE_MASK_BIAS + 2 * bound > EXP_UNDERFLOW or SAFE_MASK_BIAS - bound < -low.largest:
        return None
    return Rewrite(
        path.constant,
        path.value,
        SAFE_MASK_BIAS,
        f"scores reach {max(bounds):.4g} on real inputs; with {context.headroom:g} times that, a masked "
        f"score is at least {-(SAFE_MASK_BIAS + 2 * bound):.6g} below every other, so its exponential is "
        f"exactly 0, and it is not below {SAFE_MASK_BIAS - bound:.6g}, which {low.label} holds",
    )


def _has_other_readers(path: MaskPath, graph: GraphIndex) -> bool:
    """Whether something that is not on the way to a softmax reads the values, and would find others."""
    on_the_way = {*path.nodes, *path.softmaxes}
    readers = (reader for name in path.tensors for reader in graph.readers(name))
    return any(name_of(node) not in on_the_way and node.op_type not in DTYPE_AGNOSTIC_OPS for node in readers)


def _joins_softmax(node: ir.Node, path: MaskPath) -> bool:
    """Whether the mask is added to the scores here: a softmax reads the result, perhaps moved."""
    at = [node]
    while at:
        users = [user for item in at for value in item.outputs for user in readers_of(value)]
        if any(user.name in path.softmaxes for user in users):
            return True
        at = [user for user in users if user.op_type in MASK_MOVING_OPS and user.name in path.nodes]
    return False


def _is_indicator(name: str, context: RuleContext) -> bool:
    """Whether a tensor holds only zeros and ones: made from integers, and at most 1 on real inputs."""
    if not context.largest.get(name, math.inf) <= 1:
        return False
    node = context.graph.producer(name)
    while node is not None and node.op_type in (*MASK_MOVING_OPS, "Sub"):
        names = input_names(node)
        if node.op_type == "Cast" and context.graph.types.get(names[0]) != FLOAT:
            return True
        if node.op_type == "Sub" and not _is_all(names[0], 1, context):
            return False
        node = context.graph.producer(names[1 if node.op_type == "Sub" else 0])
    return False


def _is_all(name: str, value: float, context: RuleContext) -> bool:
    """Whether a tensor is a constant of this value."""
    values = context.graph.constants.get(name)
    return values is not None and bool(np.all(values == value))
