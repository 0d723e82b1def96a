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
        from bertmp.cli.plan_tables import plan_tables

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
    from bertmp.cli.plan_tables import describe

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
