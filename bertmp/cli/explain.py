"""The command `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertmp.cli.command import CommandResult
from bertmp.cli.command import function_command as command

if TYPE_CHECKING:
    from bertmp.export.lint.findings import Explanation

_LOW = ("fp16", "bf16")
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this module."""

    @command(app, "explain", "bertmp explain model.fp16.onnx --calibration texts.txt")
    def explain(
        graph: Annotated[Path, typer.Argument(metavar="GRAPH", help="An ONNX graph of any precision.")],
        calibration: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Texts to run it on, for ranges and headroom.")
        ] = None,
        tokenizer: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="The tokenizer's folder, where it is not the graph's."),
        ] = None,
    ) -> CommandResult:
        """Report a graph's ranges, headroom, small weights, mask constants and casts, and what to mend."""
        from rich.console import Console
        from rich.progress import Progress

        from bertmp.export.lint.explain import explain as run

        errors = Console(stderr=True)
        with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
            task = bar.add_task("running the texts", visible=calibration is not None)
            result = run(
                graph,
                calibration=calibration,
                tokenizer=tokenizer,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        return CommandResult(result.to_json(), lambda console: show(console, result))


def show(console: Any, result: Explanation) -> None:
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
        console.print("nothing to mend")


def _casts(result: Explanation) -> str:
    casts = result.casts
    kinds = ", ".join(f"{number} {kind}" for kind, number in casts.kinds.items())
    return f"casts: {casts.total}{f' ({kinds})' if kinds else ''}; {len(casts.spared)} could be spared"


def _table(result: Explanation) -> Any:
    from rich.table import Table

    measured = result.calibration is not None
    title = f"on {result.calibration['texts']} texts" if result.calibration else "from the weights alone"
    table = Table(title=f"Ranges {title}", title_justify="left")
    table.add_column("block", no_wrap=True)
    for name in ("16-bit", "fp32", "weights", "largest", "headroom", "subnormal"):
        table.add_column(name, justify="right", no_wrap=True)
    for block in result.blocks:
        low = sum(number for kind, number in block.nodes.items() if kind in _LOW)
        table.add_row(
            block.name or "-",
            str(low),
            str(block.nodes.get("fp32", 0)),
            f"{block.weights_largest:.4g}" if block.weights_largest else "-",
            "-" if block.largest is None else f"{block.largest:.4g}",
            f"{block.headroom:.3g}",
            f"{block.subnormal:.1%}" if measured and block.subnormal is not None else "-",
        )
    return table
