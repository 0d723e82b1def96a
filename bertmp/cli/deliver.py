"""The commands that make and complete a bundle: export, convert, build-engine, parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertmp.cli import engine, parity
from bertmp.cli.base import Outcome, command

KeepFp32 = Annotated[
    list[str],
    typer.Option(
        metavar="PATTERN",
        help="Keep in FP32 the nodes of this name, operator or module (* allowed); may be repeated.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Registers this room's commands."""

    @command(app, "export", "bertmp export run/final --out bundle")
    def export(
        checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.")],
        out: Annotated[Path, typer.Option(metavar="BUNDLE", help="The bundle's folder.")],
        opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 18,
        keep_fp32: KeepFp32 = [],  # noqa: B006  (Typer copies it)
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
    ) -> Outcome:
        """Write a checkpoint as ONNX: the FP32 graph, the FP16 graph and the plan behind it."""
        from rich.console import Console

        from bertmp.export.exporter import export as run

        with Console(stderr=True).status("exporting") as status:
            result = run(
                checkpoint,
                out,
                opset=opset,
                keep_fp32=keep_fp32,
                fp16=fp16,
                task=task,
                report=lambda step: status.update(step),
            )
        return Outcome(result.to_json(), _describe_export(result))

    @command(app, "convert", "bertmp convert model.onnx model.fp16.onnx --keep-fp32 Tanh")
    def convert(
        source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="An FP32 graph.")],
        target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The FP16 graph to write.")],
        keep_fp32: KeepFp32 = [],  # noqa: B006
    ) -> Outcome:
        """Convert any ONNX graph of a transformer encoder to FP16, with its precision plan."""
        from bertmp.export.precision.convert import convert as run

        result = run(source, target, keep_fp32=keep_fp32)
        lines = [
            f"{result.graph}: {result.bytes / 1e6:.1f} MB, {result.size_ratio:.3f} of FP32, "
            f"{result.casts} casts",
            f"{result.plan}: {result.nodes['fp32']} nodes in FP32, {result.nodes['fp16']} in FP16",
        ]
        return Outcome(result.to_json(), "\n".join(lines))

    engine.add_commands(app)
    parity.add_commands(app)


def _describe_export(result: Any) -> str:
    lines = [
        *result.remarks,
        f"{result.bundle} ({result.task}), {result.seconds:.1f} s",
        f"  model.onnx       {result.bytes_fp32 / 1e6:8.1f} MB",
    ]
    if result.bytes_fp16:
        ratio = result.bytes_fp16 / result.bytes_fp32
        lines += [
            f"  model.fp16.onnx  {result.bytes_fp16 / 1e6:8.1f} MB, {ratio:.3f} of FP32",
            f"  {result.nodes['fp32']} nodes stay FP32, {result.nodes['fp16']} run in FP16, "
            f"{result.casts} casts; the reasons are in precision-plan.json",
        ]
    return "\n".join(lines)
