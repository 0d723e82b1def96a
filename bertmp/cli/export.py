"""The commands `export` and `convert`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult
from bertmp.cli.progress import progress_bar
from bertmp.core.options import option
from bertmp.export.export_options import ExportOptions
from bertmp.export.precision.precision_options import PRECISION, ConvertOptions

if TYPE_CHECKING:
    from bertmp.export.onnx_export import ExportResult
    from bertmp.export.precision.convert import Conversion
    from bertmp.export.precision.pipeline import Planned
    from bertmp.export.precision.plan import NodePlan, PrecisionPlan, SearchRecord
import math
from collections.abc import Iterator

from bertmp.cli.progress import new_table

if TYPE_CHECKING:
    from rich.table import Table


_WIDE = 160
"""Columns of a table that is not printed on a terminal."""


class ExportCommandOptions(ExportOptions):
    """Those of `bertmp.export_checkpoint`, and what the command shows."""

    explain: bool = option(default=False, group=PRECISION, help="Print why each FP32 node is one.")


class ConvertCommandOptions(ConvertOptions):
    """Those of `bertmp.convert`, and what the command shows."""

    explain: bool = option(default=False, group=PRECISION, help="Print why each FP32 node is one.")


def export(options: ExportCommandOptions) -> CommandResult:
    """Write a checkpoint as ONNX: the FP32 graph, the FP16 graph and the plan behind it."""
    with progress_bar(log=False) as progress:
        result = bertmp.export_checkpoint(replace(options, progress=progress))
    return _command_result(result, _describe_export(result), options.explain)


def convert(options: ConvertCommandOptions) -> CommandResult:
    """Convert any ONNX graph of a transformer encoder to FP16, with its precision plan."""
    with progress_bar(log=False) as progress:
        result = bertmp.convert(replace(options, progress=progress))
    low = result.planned.plan.target
    lines = [
        *result.notes,
        f"{result.graph}: {result.bytes / 1e6:.1f} MB, {result.size_ratio:.3f} of FP32, {result.casts} casts",
        f"{result.plan}: {result.nodes['fp32']} nodes in FP32, {result.nodes[low]} in {low.upper()}",
        *_describe_measured(result.planned),
    ]
    return _command_result(result, "\n".join(lines), options.explain)


def _command_result(result: ExportResult | Conversion, text: str, explain: bool) -> CommandResult:
    """The result of a conversion; exit code 1 where what was measured is not what was asked for."""

    def show(console: Any) -> None:
        from bertmp.cli.export import plan_tables

        if explain and result.planned:
            width = None if console.is_terminal else _WIDE
            for part in plan_tables(result.planned.plan):
                console.print(part, soft_wrap=isinstance(part, str), markup=False, width=width)
        console.print(text, markup=False)

    met = result.planned is None or result.planned.meets_budget
    return CommandResult(result.to_json(), show, exit_code=0 if met else 1)


def _describe_export(result: ExportResult) -> str:
    lines = [
        *result.notes,
        f"{result.bundle} ({result.task}), {result.seconds:.1f} s",
        f"  model.onnx       {result.bytes_fp32 / 1e6:8.1f} MB",
    ]
    if result.planned:
        low = result.planned.plan.target
        lines += [
            f"  model.fp16.onnx  {result.bytes_fp16 / 1e6:8.1f} MB, "
            f"{result.bytes_fp16 / result.bytes_fp32:.3f} of FP32",
            f"  {result.nodes['fp32']} nodes stay FP32, {result.nodes[low]} run in {low.upper()}, "
            f"{result.casts} casts; the reasons are in precision-plan.json",
            *(f"  {line}" for line in _describe_measured(result.planned)),
        ]
    return "\n".join(lines)


def _describe_measured(planned: Planned) -> list[str]:
    """Which ranges were used, and the measured error."""
    from bertmp.cli.export import describe

    plan, lines = planned.plan, []
    if plan.ranges is not None and plan.ranges.blocks:
        block = min(plan.ranges.blocks, key=plan.ranges.blocks.__getitem__)
        source = "of training" if plan.ranges.source == "training" else f"on {plan.ranges.texts} texts"
        lines.append(
            f"least headroom {source}: {plan.ranges.blocks[block]:.3g} times in {block} ({plan.ranges.file})"
        )
    if plan.search is not None:
        lines.append(describe(plan.search))
    return lines


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
