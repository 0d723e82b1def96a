"""A precision plan for people: why each FP32 node is one, and how far each block is from overflow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bertmp.cli.tables import new_table
from bertmp.export.precision.plan import NodePlan, PrecisionPlan, SearchRecord

if TYPE_CHECKING:
    from rich.table import Table


def plan_tables(plan: PrecisionPlan) -> Iterator[Any]:
    """What to print of a plan, one part after the other, for a Rich console."""
    counts = ", ".join(f"{number} {kind}" for kind, number in plan.counts().items())
    yield f"{len(plan.nodes)} nodes: {counts}; headroom wanted: {plan.headroom:g}"
    for rewrite in plan.rewrites:
        yield f"{rewrite.tensor}: {rewrite.before:g} becomes {rewrite.after:g}: {rewrite.justification}"
    yield _nodes(plan)
    if plan.ranges is not None:
        yield _headroom(plan)
    if plan.search is not None:
        yield from _measured(plan.search)


def number(value: float | None) -> str:
    """A number in three digits; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.3g}" if math.isfinite(value) else "overflow" if value > 0 else str(value)


def _nodes(plan: PrecisionPlan) -> Table:
    nodes = plan.kept_fp32()
    if all(node.error is None for node in nodes):
        rows = [(node.name, _why(node), _numbers(node)) for node in nodes]
        return new_table(rows, ("node", "why", "numbers"), title="FP32 nodes")
    measured = [(node.name, _why(node), _numbers(node), number(node.error)) for node in nodes]
    error = f"error in {plan.target.upper()}"
    return new_table(measured, ("node", "why", "numbers"), (error,), "FP32 nodes")


def _why(node: NodePlan) -> str:
    return "\n".join(f"{reason.rule}: {reason.sentence}" for reason in node.reasons)


def _numbers(node: NodePlan) -> str:
    found = {key: value for reason in node.reasons for key, value in reason.numbers.items()}
    return "\n".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.items())


def _headroom(plan: PrecisionPlan) -> Table:
    assert plan.ranges is not None
    source = f"{plan.ranges.texts} texts of " if plan.ranges.source == "calibration" else "training, "
    rows = (
        (block or "-", f"{headroom:.4g}", _shortfall(headroom, plan.headroom))
        for block, headroom in plan.ranges.blocks.items()
    )
    return new_table(rows, ("block", "headroom", ""), title=f"Headroom on {source}{plan.ranges.file}")


def _shortfall(headroom: float, wanted: float) -> str:
    if headroom < 1:
        return "less than 1: overflows"
    return "too little" if headroom < wanted else ""


def _measured(search: SearchRecord) -> Iterator[Any]:
    if len(search.steps) > 1:
        steps = sorted(search.steps, key=lambda step: (step.fp32_nodes, step.error))
        rows = ((step.changed, step.fp32_nodes, number(step.error), step.flips) for step in steps)
        numbers = ("FP32 nodes", "largest error", "labels changed")
        yield new_table(rows, ("how",), numbers, "Error against FP32 nodes")
    yield describe(search)


def describe(search: SearchRecord) -> str:
    """The measured error in a sentence."""
    found = (
        f"largest error {number(search.error)}, {search.label_flips} labels changed on {search.texts} texts"
    )
    if search.max_error is None:
        return found
    if search.bound_by is None:
        return f"{found}: within the budget of {search.max_error:g}"
    return f"{found}: the budget of {search.max_error:g} cannot be met, {search.bound_by} bounds it"
