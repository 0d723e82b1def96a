"""The command `parity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from bertmp.cli.command import CommandResult
from bertmp.cli.command import function_command as command
from bertmp.core.errors import InputError
from bertmp.data.readers import Columns

if TYPE_CHECKING:
    from bertmp.export.parity.result import ParityReport, StageReport
    from bertmp.export.parity.stage import Stage


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this module."""

    @command(app, "parity", "bertmp parity bundle --data test.tsv --server localhost:8001 --model trec")
    def parity(
        bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
        data: Annotated[Path, typer.Option(metavar="FILE", help="Labelled or unlabelled texts.")],
        server: Annotated[
            str | None, typer.Option(metavar="URL", help="A Triton server that serves this bundle.")
        ] = None,
        model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name there.")] = None,
        protocol: Annotated[str, typer.Option(help="How to ask the server: grpc or http.")] = "grpc",
        gates: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                help="Limits in TOML, a table a stage: max_error = 0.01 below the line \\[onnx-fp16].",
            ),
        ] = None,
        report: Annotated[
            Path | None, typer.Option(metavar="DIR", help="The report's folder; BUNDLE/parity if not given.")
        ] = None,
        checkpoint: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="The FP32 checkpoint, where it was moved since the export."),
        ] = None,
        text_column: Annotated[str, typer.Option(metavar="NAME", help="The column of the texts.")] = "text",
        text_pair_column: Annotated[
            str, typer.Option(metavar="NAME", help="The column of the second texts.")
        ] = "text_pair",
        label_column: Annotated[
            str, typer.Option(metavar="NAME", help="The column of the labels.")
        ] = "label",
    ) -> CommandResult:
        """Compare every stage with the FP32 checkpoint; exit 1 if a gate fails."""
        from bertmp.export.parity.parity import parity as run

        result = run(
            bundle,
            data,
            gates=gates,
            report=report,
            extra_stages=_served(server, model, protocol),
            columns=Columns(text_column, text_pair_column, label_column),
            checkpoint=checkpoint,
        )
        return CommandResult(result.to_json(), _describe(result), 0 if result.passed else 1)


def _served(server: str | None, model: str | None, protocol: str) -> tuple[Stage, ...]:
    if protocol not in ("grpc", "http"):
        raise InputError(f"unknown protocol '{protocol}'", "--protocol", "use grpc or http")
    if server is None and model is None:
        return ()
    if server is None or model is None:
        missing = "--server" if server is None else "--model"
        raise InputError(f"no {missing}", "", "--server URL and --model NAME go together")
    from bertmp.serve.parity_stage import TritonStage

    return (TritonStage(server, model, cast(Literal["grpc", "http"], protocol)),)


def _describe(result: ParityReport) -> Callable[[Any], None]:
    def show(console: Any) -> None:
        from rich.markup import escape

        console.print(_table(result))
        for note in _notes(result):
            console.print(escape(note))
        for gate in result.failed_gates:
            console.print(f"[red]failed[/] {escape(f'{gate.stage} {gate.name}: {gate.sentence}')}")
        held = len(result.gates) - len(result.failed_gates)
        verdict = "[green]passed[/]" if result.passed else "[red]not passed[/]"
        console.print(f"parity {verdict}: {held} of {len(result.gates)} gates held")
        console.print(escape(f"report: {result.folder / 'report.html'}"))

    return show


def _notes(result: ParityReport) -> list[str]:
    notes = [
        f"{stage.name} was not run: {stage.reason}" for stage in result.stages if stage.status == "not run"
    ]
    if result.note:
        notes.append(result.note)
    if result.data.truncated:
        notes.append(
            f"{result.data.truncated} of {result.data.texts} texts were too long and lost their tail"
        )
    return notes


def _table(result: ParityReport) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    table.add_column("")
    for heading in ("max error", "mean error", "flips", "accuracy", "texts/s"):
        table.add_column(heading, justify="right")
    for stage in result.stages:
        table.add_row(stage.name, result.verdict(stage), *_figures(stage))
    return table


def _figures(stage: StageReport) -> list[str]:
    """Errors, flips, accuracy and speed; empty where there are none."""
    measures = stage.measures
    if measures is None:
        return []
    errors = [f"{measures.max_error:.2e}", f"{measures.mean_error:.2e}", str(len(measures.flips))]
    return [
        *(["", "", ""] if stage.status == "reference" else errors),
        "" if measures.accuracy is None else f"{measures.accuracy:.4f}",
        f"{stage.texts_per_second:,.0f}" if stage.texts_per_second else "",
    ]
