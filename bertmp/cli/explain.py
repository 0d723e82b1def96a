"""The command `explain`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult
from bertmp.cli.progress import new_table, progress_bar
from bertmp.export.lint.explain_options import ExplainOptions

if TYPE_CHECKING:
    from rich.table import Table

    from bertmp.export.lint.findings import Explanation

_LOW = ("fp16", "bf16")
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def explain(options: ExplainOptions) -> CommandResult:
    """Report a graph's ranges, headroom, small weights, mask constants and casts, and what to fix."""
    with progress_bar(log=False) as progress:
        result = bertmp.explain(replace(options, progress=progress))
    return CommandResult(result.to_json(), lambda console: _show(console, result))


def _show(console: Any, result: Explanation) -> None:
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
    console.print(_casts(result))
    for mask in result.masks:
        console.print(
            f"mask constant {mask.value:.5g} in {mask.constant}, added in {', '.join(mask.added_in) or '-'}: "
            f"{'survives' if mask.survives else 'does not survive'} an addition in FP16"
        )
    table = _table(result)
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


def _casts(result: Explanation) -> str:
    casts = result.casts
    kinds = ", ".join(f"{number} {kind}" for kind, number in casts.kinds.items())
    return f"casts: {casts.total}{f' ({kinds})' if kinds else ''}; {len(casts.spared)} could be spared"


def _table(result: Explanation) -> Table:
    title = f"on {result.calibration['texts']} texts" if result.calibration else "from the weights alone"
    rows = (
        (
            block.name or "-",
            sum(number for kind, number in block.nodes.items() if kind in _LOW),
            block.nodes.get("fp32", 0),
            f"{block.weights_largest:.4g}" if block.weights_largest else "-",
            "-" if block.largest is None else f"{block.largest:.4g}",
            f"{block.headroom:.3g}",
            "-" if block.subnormal is None or not result.calibration else f"{block.subnormal:.1%}",
        )
        for block in result.blocks
    )
    numbers = ("16-bit", "fp32", "weights", "largest", "headroom", "subnormal")
    return new_table(rows, ("block",), numbers, f"Ranges {title}")
