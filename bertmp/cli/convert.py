"""The commands that make and complete a bundle: export, convert, build-engine, parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertmp.cli import engine, explain, parity
from bertmp.cli.command import CommandResult
from bertmp.cli.command import function_command as command

KeepFp32 = Annotated[
    list[str],
    typer.Option(
        metavar="PATTERN",
        help="Keep in FP32 the nodes of this name, operator or module (* allowed); may be repeated.",
    ),
]
AllowFp16 = Annotated[
    list[str],
    typer.Option(
        metavar="PATTERN",
        help="Let these nodes run in FP16 although they normalise, reduce, are a softmax or read small "
        "weights; may be repeated.",
    ),
]
To = Annotated[str, typer.Option(metavar="fp16|bf16", help="The 16-bit type.")]
Headroom = Annotated[
    float, typer.Option(help="How many times a 16-bit tensor must fit into its type's range on real text.")
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Texts to measure ranges and errors on (a few are drawn from it)."),
]
MaxError = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="The most that an output value may change on the calibration texts; nodes are raised to FP32 "
        "for it, and exit 1 says that it cannot be met.",
    ),
]
GivenPlan = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Apply this plan, perhaps edited, instead of making one.")
]
_WIDE = 160
"""Columns of a table that is not printed on a terminal."""

Explain = Annotated[bool, typer.Option("--explain", help="Print why each FP32 node is one.")]


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this module."""

    @command(app, "export", "bertmp export run/final --out bundle")
    def export(
        checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.")],
        out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle's folder.")],
        opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 18,
        keep_fp32: KeepFp32 = [],  # noqa: B006  (Typer copies it)
        allow_fp16: AllowFp16 = [],  # noqa: B006
        to: To = "fp16",
        headroom: Headroom = 4.0,
        calibration: Calibration = None,
        max_error: MaxError = None,
        plan: GivenPlan = None,
        explain: Explain = False,
        fp16: Annotated[
            bool, typer.Option("--fp16/--no-fp16", help="Whether to make the FP16 graph.")
        ] = True,
        task: Annotated[
            str | None,
            typer.Option(
                help="The head, where the checkpoint does not say it: encoder, classification, "
                "multi-label-classification, regression, token-classification, pretraining, masked-lm or "
                "next-sentence."
            ),
        ] = None,
    ) -> CommandResult:
        """Write a checkpoint as ONNX: the FP32 graph, the FP16 graph and the plan behind it."""
        from rich.console import Console

        from bertmp.export.onnx_export import export_checkpoint as run

        with Console(stderr=True).status("exporting") as status:
            result = run(
                checkpoint,
                out,
                opset=opset,
                keep_fp32=tuple(keep_fp32),
                allow_fp16=tuple(allow_fp16),
                to=to,  # type: ignore[arg-type]
                headroom=headroom,
                calibration=calibration,
                max_error=max_error,
                plan=plan,
                fp16=fp16,
                task=task,
                report=status.update,
            )
        return _outcome(result, _describe_export(result), explain)

    @command(app, "convert", "bertmp convert model.onnx model.fp16.onnx --calibration texts.txt --explain")
    def convert(
        source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="An FP32 graph.")],
        target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The FP16 graph to write.")],
        keep_fp32: KeepFp32 = [],  # noqa: B006
        allow_fp16: AllowFp16 = [],  # noqa: B006
        to: To = "fp16",
        headroom: Headroom = 4.0,
        calibration: Calibration = None,
        tokenizer: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="The tokenizer's folder, where it is not the graph's."),
        ] = None,
        max_error: MaxError = None,
        plan: GivenPlan = None,
        explain: Explain = False,
    ) -> CommandResult:
        """Convert any ONNX graph of a transformer encoder to FP16, with its precision plan."""
        from rich.console import Console

        from bertmp.export.precision.convert import convert as run

        with Console(stderr=True).status("reading the graph") as status:
            result = run(
                source,
                target,
                keep_fp32=tuple(keep_fp32),
                allow_fp16=tuple(allow_fp16),
                to=to,  # type: ignore[arg-type]
                headroom=headroom,
                calibration=calibration,
                tokenizer=tokenizer,
                max_error=max_error,
                plan=plan,
                report=status.update,
            )
        low = result.planned.plan.target
        lines = [
            f"{result.graph}: {result.bytes / 1e6:.1f} MB, {result.size_ratio:.3f} of FP32, "
            f"{result.casts} casts",
            f"{result.plan}: {result.nodes['fp32']} nodes in FP32, {result.nodes[low]} in {low.upper()}",
        ]
        return _outcome(
            result, "\n".join([*result.remarks, *lines, *_describe_measured(result.planned)]), explain
        )

    explain.add_commands(app)
    engine.add_commands(app)
    parity.add_commands(app)


def _outcome(result: Any, text: str, explain: bool) -> CommandResult:
    """The outcome of a conversion; exit code 1 where what was measured is not what was asked for."""

    def show(console: Any) -> None:
        from bertmp.cli.plan_tables import plan_tables

        if explain and result.planned:
            width = None if console.is_terminal else _WIDE
            for part in plan_tables(result.planned.plan):
                console.print(part, soft_wrap=isinstance(part, str), markup=False, width=width)
        console.print(text, markup=False)

    kept = result.planned is None or result.planned.kept
    return CommandResult(result.to_json(), show, exit_code=0 if kept else 1)


def _describe_export(result: Any) -> str:
    lines = [
        *result.remarks,
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


def _describe_measured(planned: Any) -> list[str]:
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
