"""The command `parity`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import bertmp
from bertmp.cli.command import CommandResult
from bertmp.cli.progress import new_table, progress_bar
from bertmp.core.errors import InputError
from bertmp.core.options import option
from bertmp.export.parity.parity_options import ParityOptions

if TYPE_CHECKING:
    from bertmp.export.parity.result import ParityReport, StageReport
    from bertmp.export.parity.stage import Stage

SERVED = "Served model"


class ParityCommandOptions(ParityOptions):
    """Those of `bertmp.parity`, and the served model that is compared as well."""

    server: str | None = option(
        default=None, group=SERVED, metavar="URL", help="A Triton server that serves this bundle."
    )
    model: str | None = option(default=None, group=SERVED, metavar="NAME", help="The model's name there.")
    protocol: Literal["grpc", "http"] = option(default="grpc", group=SERVED, help="How the server is asked.")

    def check(self) -> None:
        if (self.server is None) != (self.model is None):
            missing = "--server" if self.server is None else "--model"
            raise InputError(f"no {missing}", "", "--server URL and --model NAME go together")


def parity(options: ParityCommandOptions) -> CommandResult:
    """Compare every stage with the FP32 checkpoint; exit 1 if a gate fails."""
    with progress_bar() as progress:
        result = bertmp.parity(replace(options, extra_stages=_served(options), progress=progress))
    return CommandResult(result.to_json(), _describe(result), 0 if result.passed else 1)


def _served(options: ParityCommandOptions) -> tuple[Stage, ...]:
    if options.server is None or options.model is None:
        return ()
    from bertmp.serve.parity_stage import TritonStage

    return (TritonStage(options.server, options.model, options.protocol),)


def _describe(result: ParityReport) -> Callable[[Any], None]:
    def show(console: Any) -> None:
        from rich.markup import escape

        rows = ((stage.name, result.verdict(stage), *_figures(stage)) for stage in result.stages)
        console.print(new_table(rows, ("stage", ""), _FIGURES))
        for note in _notes(result):
            console.print(escape(note))
        for gate in result.failed_gates:
            console.print(f"[red]failed[/] {escape(f'{gate.stage} {gate.name}: {gate.sentence}')}")
        passed = len(result.gates) - len(result.failed_gates)
        verdict = "[green]passed[/]" if result.passed else "[red]not passed[/]"
        console.print(f"parity {verdict}: {passed} of {len(result.gates)} gates passed")
        console.print(escape(f"report: {result.folder / 'report.html'}"))

    return show


def _notes(result: ParityReport) -> list[str]:
    notes = [
        f"{stage.name} was not run: {stage.reason}" for stage in result.stages if stage.status == "not run"
    ]
    if result.note:
        notes.append(result.note)
    if result.data.truncated:
        notes.append(f"{result.data.truncated} of {result.data.texts} texts were too long and were truncated")
    return notes


_FIGURES = ("max error", "mean error", "flips", "accuracy", "examples/s")


def _figures(stage: StageReport) -> list[str]:
    """Errors, flips, accuracy and speed; empty where there are none."""
    metrics = stage.metrics
    if metrics is None:
        return []
    errors = [f"{metrics.max_error:.2e}", f"{metrics.mean_error:.2e}", str(len(metrics.flips))]
    return [
        *(["", "", ""] if stage.status == "reference" else errors),
        "" if metrics.accuracy is None else f"{metrics.accuracy:.4f}",
        f"{stage.texts_per_second:,.0f}" if stage.texts_per_second else "",
    ]
