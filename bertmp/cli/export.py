"""The commands `export`, `convert` and `explain`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult, new_table, progress_bar
from bertmp.core.options import option
from bertmp.export.export_options import PRECISION, ConvertOptions, ExplainOptions, ExportOptions

if TYPE_CHECKING:
    from rich.table import Table

    from bertmp.export.lint.findings import Explanation
    from bertmp.export.onnx_export import ExportResult
    from bertmp.export.precision.convert import Conversion, Planned
    from bertmp.export.precision.plan import PrecisionPlan, SearchRecord

_WIDE = 160
"""Columns of a table that is not printed on a terminal."""


class ExportCommandOptions(ExportOptions):
    """Those of `bertmp.export_checkpoint`, and what the command shows."""

    explain: bool = option(default=False, group=PRECISION, help="Print why each FP32 node is one.")


class ConvertCommandOptions(ConvertOptions):
    """Those of `bertmp.convert`, and what the command shows."""

    explain: bool = option(default=False, group=PRECISION, help="Print why each FP32 node is one.")


def export(options: ExportCommandOptions) -> CommandResult:
    """Write a checkpoint as ONNX: the FP32 graph, the FP16 or BF16 graph and the plan behind it."""
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
            f"  {result.low_graph}  {result.bytes_fp16 / 1e6:8.1f} MB, "
            f"{result.bytes_fp16 / result.bytes_fp32:.3f} of FP32",
            f"  {result.nodes['fp32']} nodes stay FP32, {result.nodes[low]} run in {low.upper()}, "
            f"{result.casts} casts; the reasons are in precision-plan.json",
            *(f"  {line}" for line in _describe_measured(result.planned)),
        ]
    return "\n".join(lines)


def _describe_measured(planned: Planned) -> list[str]:
    """Which ranges were used, and the measured error."""
    plan, lines = planned.plan, []
    if plan.ranges is not None and plan.ranges.blocks:
        block = min(plan.ranges.blocks, key=plan.ranges.blocks.__getitem__)
        source = _examples(plan.ranges.source, plan.ranges.texts)
        lines.append(
            f"least headroom {source}: {plan.ranges.blocks[block]:.3g} times in {block} ({plan.ranges.file})"
        )
    if plan.search is not None:
        lines.append(describe(plan.search))
    return lines


def _examples(source: str, texts: int) -> str:
    """What ranges were measured on."""
    if source == "training":
        return "of training"
    return f"on {texts} texts" if source == "calibration" else f"on {texts} inputs made from the vocabulary"


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
    measured = [f"error in {plan.target.upper()}"] if any(node.error is not None for node in nodes) else []
    rows = []
    for node in nodes:
        why = "\n".join(f"{reason.rule}: {reason.sentence}" for reason in node.reasons)
        found = {key: value for reason in node.reasons for key, value in reason.numbers.items()}
        numbers = "\n".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in found.items())
        rows.append((node.name, why, numbers, *(number(node.error) for _ in measured)))
    return new_table(rows, ("node", "why", "numbers"), measured, "FP32 nodes")


def _headroom(plan: PrecisionPlan) -> Table:
    assert plan.ranges is not None
    source = _examples(plan.ranges.source, plan.ranges.texts)
    rows = []
    for block, headroom in plan.ranges.blocks.items():
        short = "too little" if headroom < plan.headroom else ""
        rows.append((block or "-", f"{headroom:.4g}", "less than 1: overflows" if headroom < 1 else short))
    return new_table(rows, ("block", "headroom", ""), title=f"Headroom {source} ({plan.ranges.file})")


def _measured(search: SearchRecord) -> Iterator[Any]:
    if len(search.steps) > 1:
        steps = sorted(search.steps, key=lambda step: (step.fp32_nodes, step.error))
        rows = ((step.changed, step.fp32_nodes, number(step.error), step.flips) for step in steps)
        numbers = ("FP32 nodes", "largest error", "labels changed")
        yield new_table(rows, ("how",), numbers, "Error against FP32 nodes")
    yield describe(search)


def describe(search: SearchRecord) -> str:
    """The measured error in a sentence."""
    flips = f"{search.label_flips} labels changed on {search.texts} texts"
    found = f"largest error {number(search.error)}, {flips}"
    if search.max_error is None:
        return found
    if search.bound_by is None:
        return f"{found}: within the budget of {search.max_error:g}"
    return f"{found}: the budget of {search.max_error:g} cannot be met, {search.bound_by} bounds it"


_LOW = ("fp16", "bf16")
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def explain(options: ExplainOptions) -> CommandResult:
    """Report a graph's ranges, headroom, small weights, mask constants and casts, and what to fix."""
    with progress_bar(log=False) as progress:
        result = bertmp.explain(replace(options, progress=progress))
    return CommandResult(result.to_json(), lambda console: _show_explanation(console, result))


def _show_explanation(console: Any, result: Explanation) -> None:
    """Prints the report for people."""
    nodes = ", ".join(f"{number} {kind}" for kind, number in sorted(result.nodes.items()))
    made_by = f", made by {result.made_by}" if result.made_by else ""
    console.print(f"[bold]{result.graph}[/bold]: opset {result.opset}{made_by}; nodes: {nodes}")
    for kind, weights in result.weights.items():
        below = "lie below its" if kind in _LOW else "would lie below FP16's"
        console.print(
            f"weights in {kind}: {weights.elements:,}, {weights.bytes / 1e6:.1f} MB, largest "
            f"{weights.largest:.4g}; {weights.subnormal:.2%} {below} smallest normal number"
        )
    for note in result.notes:
        console.print(note, markup=False, soft_wrap=True)
    casts = result.casts
    kinds = ", ".join(f"{number} {kind}" for kind, number in casts.kinds.items())
    kinds = f" ({kinds})" if kinds else ""
    console.print(f"casts: {casts.total}{kinds}; {len(casts.spared)} could be spared")
    for mask in result.masks:
        console.print(
            f"mask constant {mask.value:.5g} in {mask.constant}, added in {', '.join(mask.added_in) or '-'}: "
            f"{'survives' if mask.survives else 'does not survive'} an addition in FP16"
        )
    table = _block_table(result)
    # A narrow window or a pipe shall not cut names and figures short.
    wanted = console.measure(table, options=console.options.update(max_width=400)).maximum
    console.width = max(console.width, wanted)
    console.print(table)
    for finding in result.findings:
        colour = _COLOURS[finding.severity]
        where = f" [dim]{finding.node}[/dim]" if finding.node else ""
        console.print(f"[{colour}]{finding.severity}[/{colour}] {finding.rule}{where}")
        console.print(f"  {finding.sentence}\n  → {finding.advice}", markup=False)
    if not result.findings:
        console.print("nothing to fix")


def _block_table(result: Explanation) -> Table:
    run_on = result.calibration
    title = _examples(run_on["source"], run_on["texts"]) if run_on else "from the weights alone"
    rows = []
    for block in result.blocks:
        nodes = (sum(block.nodes.get(kind, 0) for kind in _LOW), block.nodes.get("fp32", 0))
        weights = f"{block.weights_largest:.4g}" if block.weights_largest else "-"
        largest = "-" if block.largest is None else f"{block.largest:.4g}"
        unknown = block.subnormal is None or not result.calibration
        subnormal = "-" if unknown else f"{block.subnormal:.1%}"
        rows.append((block.name or "-", *nodes, weights, largest, f"{block.headroom:.3g}", subnormal))
    numbers = ("16-bit", "fp32", "weights", "largest", "headroom", "subnormal")
    return new_table(rows, ("block",), numbers, f"Ranges {title}")
