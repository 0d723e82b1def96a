"""The measured error behind every FP32 node: of the low precision there, with all else in FP32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import NodePlan, PrecisionPlan
from bertmp.export.precision.ranges import Progress

_NO_LOW_FORM = frozenset(
    ("no-low-form", "not-a-tensor", "control-flow", "unknown-operator", "quantised", "constant")
)
"""Rules whose nodes have no low form to be measured."""

_EXTREME = frozenset(("range", "mask-constant", "constant-beyond-range"))
"""Rules about overflow: all examples are needed to find the largest values."""


def with_errors(
    plan: PrecisionPlan,
    evaluator: Evaluator,
    brief: Evaluator,
    blocks: Mapping[str, str],
    progress: Progress = lambda done, total: None,
) -> PrecisionPlan:
    """The plan with the error behind each FP32 node.

    Nodes of one block that have the same first reason are demoted together: one of them alone would be
    rounded by its neighbours' casts anyway, and a run for each would take hours.

    Args:
        evaluator, brief: on all examples, for reasons that concern extremes; and on a few, for the others.
        blocks: node name → block.

    Raises:
        InputError: the examples do not fit the graph's inputs.
    """
    groups: dict[tuple[str, str], list[NodePlan]] = {}
    for node in plan.kept_fp32():
        if node.reasons and not _NO_LOW_FORM & {reason.rule for reason in node.reasons}:
            groups.setdefault((node.reasons[0].rule, blocks[node.name]), []).append(node)
    fp32 = all_fp32(plan)
    errors: dict[str, float] = {}
    for done, ((rule, _), members) in enumerate(groups.items()):
        progress(done, len(groups))
        chosen = evaluator if rule in _EXTREME else brief
        names = [node.name for node in members]
        error = chosen.measure(fp32.with_precision(names, plan.target)).max_error
        errors.update(dict.fromkeys(names, error))
    progress(len(groups), len(groups))
    return replace(
        plan, nodes=tuple(replace(node, error=errors.get(node.name, node.error)) for node in plan.nodes)
    )


def all_fp32(plan: PrecisionPlan) -> PrecisionPlan:
    """The plan with every node in FP32."""
    return plan.with_precision([node.name for node in plan.nodes if node.precision != "integer"], "fp32")
