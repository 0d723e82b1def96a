"""The commands `build-engine`, `bench --engine` and `parity`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import bertmp
from bertmp.cli.command import CommandResult, new_table, progress_bar
from bertmp.core.errors import InputError
from bertmp.core.options import declared_options, option
from bertmp.export.engine.engine_options import EngineOptions
from bertmp.export.parity.parity_options import ComparisonOptions, ParityOptions, ReplayOptions

if TYPE_CHECKING:
    from bertmp.data.readers import Columns
    from bertmp.export.engine.bench import EngineBench
    from bertmp.export.engine.build import EngineResult
    from bertmp.export.engine.onnxruntime_session import SessionResult
    from bertmp.export.parity.replay import ReplayReport
    from bertmp.export.parity.result import ParityReport, StageReport


class BuildEngineOptions(EngineOptions):
    """Those of `bertmp.build_engine`, and the alternative to it."""

    onnxruntime: bool = option(
        default=False, help="Prepare an ONNX Runtime session instead; takes no other option."
    )

    def check(self) -> None:
        super().check()
        for declared in declared_options(EngineOptions) if self.onnxruntime else ():
            if declared.name != "target" and getattr(self, declared.name) != declared.default:
                what = "ONNX Runtime's session has no such option"
                raise InputError(what, declared.flag, "leave it out")


def build_engine(options: BuildEngineOptions) -> CommandResult:
    """Build a TensorRT engine of the FP16 or BF16 graph and verify its precision, layer by layer."""
    if options.onnxruntime:
        session = bertmp.build_session(options.target)
        return CommandResult(session.to_json(), _describe_session(session))
    with progress_bar(log=False) as progress:
        result = bertmp.build_engine(replace(options, progress=progress))
    for note in result.warnings:
        print(f"warning: {note}", file=sys.stderr)  # noqa: T201
    return CommandResult(result.to_json(), lambda console: _show_engine(console, result))


def bench_engine(bundle: Path, texts: Path | None, seconds: float, columns: Columns) -> CommandResult:
    """`bertmp bench --engine`: the bundle's engine alone, on this GPU; exit 1 on a contradiction."""
    with progress_bar(log=False) as progress:
        result = bertmp.bench_engine(bundle, texts, seconds, columns, progress)
    code = 0 if result.consistency.passed else 1
    return CommandResult(result.to_json(), lambda console: _show_bench(console, result), code)


def _describe_session(result: SessionResult) -> str:
    here = ", ".join(result.available)
    return (
        f"provider  {result.provider} of ONNX Runtime {result.version} (here: {here})\n"
        f"graph     {result.graph} ({result.graph_bytes / 2**20:.1f} MiB), from {result.source}: "
        f"{result.nodes} nodes instead of {result.nodes_before}\n"
        f"checked   its outputs differ from {result.source}'s by at most {result.difference:.1e}"
    )


def _show_engine(console: Any, result: EngineResult) -> None:
    # Constants and shape arithmetic compute nothing of the model: network.json has them.
    shown = ((kind, counts) for kind, counts in result.summary.items() if kind in _SHOWN)
    rows = ((kind, precision, count) for kind, counts in shown for precision, count in counts.items())
    console.print(new_table(rows, ("layers", "precision"), ("count",), "Precision, verified"))
    counts = result.counts
    added = sum(number for name, number in counts.items() if name.startswith("added_"))
    console.print(
        f"{counts['nodes']} nodes as planned, {counts['planned_casts']} planned casts, "
        f"{added} layers that the parser added, none unaccounted for"
    )
    for name, text in _facts(result).items():
        console.print(f"{name:9} {text}")


def _facts(result: EngineResult) -> dict[str, str]:
    inspected, releases = result.inspection, ", ".join(result.triton_releases)
    total, weights = (result.memory[name] / 2**20 for name in ("total_bytes", "weights_bytes"))
    return {
        "builder": f"{result.builder} {result.builder_version}, for {', '.join(result.compute_capability)}",
        "needs": f"CUDA {result.cuda}, driver {result.driver} or later" if result.cuda else "not known",
        "triton": f"loads in {releases}"
        if releases
        else f"no release loads engines of {result.builder} {result.builder_version}",
        "profiles": ", ".join(result.profiles),
        "memory": f"{total:,.0f} MiB on the GPU at most, by estimate, {weights:,.0f} MiB of it weights",
        "inspected": f"{inspected['typed']} of {inspected['layers']} layers compared, as planned"
        if inspected["verified"]
        else f"the engine's own layers are not verified: {inspected['reason']}",
        "engine": f"{result.engine} ({result.engine_bytes / 2**20:.1f} MiB in {result.seconds:.1f} s)",
        "layers": str(result.network),
    }


def _show_bench(console: Any, result: EngineBench) -> None:
    from rich.markup import escape

    rows = []
    for row in result.rows:
        times = [f"{value:.3f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms)]
        rows.append((row.shape, f"{row.texts_per_second:,.1f}", f"{row.tokens_per_second:,.0f}", *times))
    console.print(f"{result.engine} on {result.gpu}, {result.builder}")
    console.print(new_table(rows, ("shape",), ("texts/s", "tokens/s", "p50 ms", "p90 ms", "p99 ms")))
    verdict = "[green]consistent[/]" if result.consistency.passed else "[red]failed[/]"
    console.print(f"{verdict}: {escape(result.consistency.sentence())}")


_SHOWN = (
    *("MATRIX_MULTIPLY", "NORMALIZATION", "SOFTMAX", "ELEMENTWISE"),
    *("ACTIVATION", "UNARY", "GATHER", "REDUCE"),
)
"""The types of layers that the plan is about."""


SERVED = "Served model"


class ParityCommandOptions(ComparisonOptions):
    """Those of `bertmp.parity` and `bertmp.replay`, and the served model that is compared as well."""

    data: Path | None = option(
        default=None, metavar="FILE", help="Labelled or unlabelled examples; needed unless there is --replay."
    )
    replay: Path | None = option(
        default=None,
        metavar="FILE",
        help="In place of --data, the failing-inputs.json of a report: those inputs alone are asked again; "
        "neither the manifest nor the certificate changes.",
    )
    server: Sequence[str] = option(
        default=(),
        group=SERVED,
        metavar="URL",
        help="A Triton server that serves this bundle; again for its other protocol, as grpc://HOST:PORT or "
        "http://HOST:PORT.",
    )
    model: str | None = option(default=None, group=SERVED, metavar="NAME", help="The model's name there.")
    protocol: Literal["grpc", "http"] | None = option(
        default=None,
        group=SERVED,
        help="How a --server without grpc:// or http:// is asked; grpc if left out.",
    )

    def check(self) -> None:
        super().check()
        if bool(self.server) != (self.model is not None):
            missing = "--model" if self.server else "--server"
            raise InputError(f"no {missing}", "", "--server URL and --model NAME go together")
        if (self.data is None) == (self.replay is None):
            what = "no --data" if self.data is None else "both --data and --replay"
            raise InputError(what, "", "give --data FILE, or --replay FILE")


def parity(options: ParityCommandOptions) -> CommandResult:
    """Compare every stage with the FP32 checkpoint; exit 1 if a gate fails, 5 if a stage is unchecked."""
    served: Sequence[Any] = ()
    if options.server and options.model is not None:
        from bertmp.serve.parity_stage import served_stages

        served = served_stages(options.server, options.model, options.protocol)
    with progress_bar() as progress:
        given = replace(options, extra_stages=served, progress=progress)
        if options.replay is not None:
            replayed = bertmp.replay(_narrowed(given, ReplayOptions))
            show = lambda console: _show_replay(console, replayed)  # noqa: E731
            return CommandResult(replayed.to_json(), show, _CODES[replayed.verdict])
        result = bertmp.parity(_narrowed(given, ParityOptions))
    return CommandResult(
        result.to_json(), lambda console: _show_parity(console, result), _CODES[result.verdict]
    )


_CODES = {"passed": 0, "failed": 1, "incomplete": 5}
_COLOURS = {"passed": "green", "failed": "red", "incomplete": "yellow"}

O = TypeVar("O", bound=ComparisonOptions)  # noqa: E741


def _narrowed(options: ParityCommandOptions, kind: type[O]) -> O:
    """The options that a public function takes."""
    return kind(**{one.name: getattr(options, one.name) for one in declared_options(kind)})


def _show_replay(console: Any, result: ReplayReport) -> None:
    from rich.markup import escape

    console.print(f"replay [{_COLOURS[result.verdict]}]{result.verdict}[/] of {escape(str(result.file))}")
    for gate in result.gates:
        mark = "[green]passed[/]" if gate.passed else "[red]failed[/]"
        console.print(f"{mark} {escape(f'{gate.stage}: {gate.sentence}')}")
    for stage, reason in result.not_asked.items():
        console.print(escape(f"{stage} was not asked: {reason}"))
    if result.note:
        console.print(escape(result.note))
    console.print("a replay is no verdict: run `bertmp parity BUNDLE --data FILE` for one")


def _show_parity(console: Any, result: ParityReport) -> None:
    from rich.markup import escape

    from bertmp.export.parity.failing_inputs import FAILING_INPUTS

    console.print(f"parity [{_COLOURS[result.verdict]}]{result.verdict}[/]: {escape(result.headline())}")
    rows = ((stage.name, result.verdict_on(stage), *_figures(stage)) for stage in result.stages)
    console.print(new_table(rows, ("stage", ""), _FIGURE_NAMES))
    for note in _notes(result):
        console.print(escape(note))
    for gate in result.failed_optional:
        console.print(
            f"[yellow]failed, not counted[/] {escape(f'{gate.stage} {gate.name}: {gate.sentence}')}"
        )
    for gate in result.failed_gates:
        console.print(f"[red]failed[/] {escape(f'{gate.stage} {gate.name}: {gate.sentence}')}")
    if (saved := result.folder / FAILING_INPUTS).is_file():
        console.print(escape(f"inputs that failed, for --replay: {saved}"))
    console.print(escape(f"report: {result.folder / 'report.html'}"))


def _notes(result: ParityReport) -> Iterator[str]:
    for stage in result.stages:
        if stage.status == "not run":
            yield f"{stage.name} was not run: {stage.reason}"
    for stage in result.stages:
        if stage.localisation is not None:
            yield f"{stage.name}: {stage.localisation.sentence}"
            if stage.localisation.keep_fp32 is not None:
                yield f"what repairs it, as tried: {stage.localisation.keep_fp32.line}"
        for metric in stage.task_metrics:
            if metric.non_inferiority.verdict in ("worse", "better"):
                yield f"{stage.name}: {metric.name} is {metric.non_inferiority.verdict} than FP32's"
    compared = {stage.name: stage.consistency for stage in result.stages if stage.consistency}
    if compared:
        largest = (f"{name} {found.difference:.1e}" for name, found in compared.items())
        yield f"largest difference of two answers to the same row: {', '.join(largest)}"
    if result.adversarial is not None:
        counts = (f"{one.stage} {one.asked}" for one in result.adversarial.stages)
        yield f"adversarial inputs of seed {result.adversarial.seed} asked: {', '.join(counts)}"
    if result.note:
        yield result.note
    if result.data.truncated:
        yield f"{result.data.truncated} of {result.data.texts} texts were too long and were truncated"


_FIGURE_NAMES = ("max error", "mean", "flips", "accuracy", "rows/s")


def _figures(stage: StageReport) -> list[str]:
    """Errors, flips, accuracy and speed; empty where there are none."""
    metrics = stage.measures
    if metrics is None:
        return []
    errors = [f"{metrics.max_error:.1e}", f"{metrics.mean_error:.1e}", str(len(metrics.flips))]
    accuracy = "" if metrics.accuracy is None else f"{metrics.accuracy:.4f}"
    speed = f"{stage.texts_per_second:,.0f}" if stage.texts_per_second else ""
    return [*(["", "", ""] if stage.status == "reference" else errors), accuracy, speed]
