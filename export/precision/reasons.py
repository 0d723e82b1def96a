"""The measured error behind each FP32 node of a plan: what its reason is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import NodePlan, PrecisionPlan
from bertmp.export.precision.ranges import Progress, Ranges
from bertmp.export.precision.switched import GroupErrors

TOKENS = 24
"""About how many tokens are run for each reason: there are dozens, and only their order matters."""

_NO_LOW_FORM = frozenset(
    ("no-low-form", "not-a-tensor", "control-flow", "unknown-operator", "quantised", "constant")
)
"""Rules whose nodes have no low form to be measured."""

_EXTREME = frozenset(("range", "mask-constant"))
"""Rules about overflow: the examples with the largest values are needed."""


def with_errors(
    plan: PrecisionPlan,
    evaluator: Evaluator,
    ranges: Ranges,
    blocks: Mapping[str, str],
    progress: Progress = lambda done, total: None,
) -> PrecisionPlan:
    """The plan with the error behind each FP32 node.

    Nodes of one block that have the same first reason are demoted together: one of them alone would be
    rounded by its neighbours' casts anyway. The shortest examples are run, and for reasons that concern
    extremes the ones with the largest values, too.

    Args:
        evaluator: for the graph and its examples.
        ranges: measured on the same examples.
        blocks: node name → block.

    Raises:
        InputError: the examples do not fit the graph's inputs.
    """
    groups: dict[tuple[str, str], list[NodePlan]] = {}
    for node in plan.kept_fp32():
        if node.reasons and not _NO_LOW_FORM & {reason.rule for reason in node.reasons}:
            groups.setdefault((node.reasons[0].rule, blocks[node.name]), []).append(node)
    if not groups:
        return plan
    members = [[node.name for node in group] for group in groups.values()]
    measured, limit = GroupErrors(evaluator, plan, members, TOKENS), LOW_TYPES[plan.target].largest
    errors: dict[str, float] = {}
    for done, ((rule, _), names) in enumerate(zip(groups, members, strict=True)):
        progress(done, len(groups))
        extreme = _extreme_feeds(names, evaluator, ranges, limit) if rule in _EXTREME else []
        errors.update(dict.fromkeys(names, measured.measure({done}, extreme)))
    progress(len(groups), len(groups))
    return replace(
        plan, nodes=tuple(replace(node, error=errors.get(node.name, node.error)) for node in plan.nodes)
    )


def _extreme_feeds(names: Sequence[str], evaluator: Evaluator, ranges: Ranges, limit: float) -> list[int]:
    """The smallest feed on which a tensor of these nodes overflows, or else comes nearest to that."""
    chosen = frozenset(names)
    nodes = [node for node in evaluator.graph.graph.node if node.name in chosen]
    tensors = {name for node in nodes for name in (*node.input, *node.output) if name in ranges.by_feed}
    if not tensors:
        return []
    values = ranges.by_feed[max(tensors, key=lambda name: (ranges.largest[name], name))]
    reached = values >= min(values.max(), 2 * limit)
    masks = evaluator.calibration.masks
    return [min(reached.nonzero()[0].tolist(), key=lambda number: masks[number].size)]
