"""`bertmp build-engine`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertmp.cli.command import CommandResult
from bertmp.cli.command import function_command as command

if TYPE_CHECKING:
    from bertmp.export.engine.bench import EngineBench
    from bertmp.export.engine.build import EngineResult
    from bertmp.export.engine.onnxruntime_session import SessionResult


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this module."""
    command(
        app,
        "build-engine",
        example="bertmp build-engine BUNDLE --profile 1x8:8x64:32x128",
    )(build_engine)


def build_engine(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(metavar="BUNDLE|GRAPH", help="A bundle, or an FP16 ONNX graph.")],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Shapes to build for, each BATCHxLENGTH; one shape alone is static. Repeat for several. "
            "[default: one a length bucket]",
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(metavar="N", help="The largest batch of the default profiles.")
    ] = 32,
    builder: Annotated[
        str, typer.Option(metavar="auto|tensorrt|tensorrt-rtx", help="Which builder.")
    ] = "auto",
    for_triton: Annotated[
        str | None,
        typer.Option(metavar="25.10", help="The Triton release that will serve it; a mismatch is refused."),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.9", help="A GPU to build for; repeat for several (TensorRT-RTX). [default: portable]"
        ),
    ] = None,
    gpu_memory: Annotated[
        int | None,
        typer.Option(metavar="MIB", help="Memory of the GPU that will run it. [default: this machine's GPU]"),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="full|refittable|stripped",
            help="Whether the engine's weights can be replaced later, or are left out of it.",
        ),
    ] = "full",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Load in later versions, too (TensorRT).")
    ] = False,
    hardware_compatible: Annotated[
        str | None,
        typer.Option(metavar="same-capability|ampere-plus", help="Run on further GPUs, too (TensorRT)."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Kernel timings, read and written; a folder keeps one file a builder version and GPU "
            "(TensorRT). [default: a folder under BERTMP_HOME]",
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", help="The most scratch memory a layer may use, in MiB.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(metavar="0-5", help="How hard the builder searches.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where a bare graph's engine goes. [default: GRAPH.engine]"),
    ] = None,
    onnxruntime: Annotated[
        bool,
        typer.Option("--onnxruntime", help="Prepare an ONNX Runtime session instead; no other option goes."),
    ] = False,
) -> CommandResult:
    """Build a TensorRT engine of the FP16 graph and prove its precision, layer by layer."""
    if onnxruntime:
        return _prepare_session(context, target)
    from bertmp.export.engine.build import build_engine as run
    from bertmp.export.engine.build_progress import build_bar

    with build_bar() as watch:
        result = run(
            target,
            profiles=profile or (),
            builder=builder,
            timing_cache=timing_cache,
            compute_capability=compute_capability or (),
            max_batch=max_batch,
            workspace_mib=workspace,
            optimization_level=optimization_level,
            weights=weights,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            gpu_memory_mib=gpu_memory,
            for_triton=for_triton,
            out=out,
            watch=watch,
        )
    for remark in result.remarks:
        print(f"warning: {remark}", file=sys.stderr)  # noqa: T201
    return CommandResult(result.to_json(), text=lambda console: _show(console, result))


def bench_engine(bundle: Path, texts: Path | None, seconds: float) -> CommandResult:
    """`bertmp bench --engine`: the bundle's engine alone, on this machine's GPU."""
    from bertmp.export.engine.bench import bench_engine as run

    result = run(bundle, texts, seconds)
    return CommandResult(result.to_json(), text=lambda console: _show_bench(console, result))


def _prepare_session(context: typer.Context, target: Path) -> CommandResult:
    from bertmp.core.errors import InputError
    from bertmp.export.engine.onnxruntime_session import build_session

    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("target", "onnxruntime", "as_json", "debug", "config")
        and getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise InputError("ONNX Runtime's session has no such option", given[0], "leave it out")
    result = build_session(target)
    return CommandResult(result.to_json(), text=_describe_session(result))


def _describe_session(result: SessionResult) -> str:
    return "\n".join(
        [
            f"provider  {result.provider} of ONNX Runtime {result.version} "
            f"(here: {', '.join(result.available)})",
            f"graph     {result.graph} ({result.graph_bytes / 2**20:.1f} MiB), from {result.source}: "
            f"{result.nodes} nodes instead of {result.nodes_before}",
            f"checked   its outputs differ from {result.source}'s by at most {result.difference:.1e}",
        ]
    )


def _show(console: Any, result: EngineResult) -> None:
    from rich.table import Table

    table = Table("layers", "precision", "count", title="Precision, proven", title_justify="left")
    for kind, precisions in result.summary.items():
        # Constants and shape arithmetic compute nothing of the model: network.json has them.
        for precision, count in precisions.items() if kind in _SHOWN else ():
            table.add_row(kind, precision, str(count))
    console.print(table)
    counts = result.counts
    added = sum(number for name, number in counts.items() if name.startswith("added_"))
    console.print(
        f"{counts['nodes']} nodes as planned, {counts['planned_casts']} planned casts, "
        f"{added} layers of the parser's own, none unaccounted for"
    )
    for name, text in _facts(result).items():
        console.print(f"{name:9} {text}")


def _facts(result: EngineResult) -> dict[str, str]:
    needs = [f"CUDA {result.cuda}", f"driver {result.driver} or later"] if result.cuda else ["not known"]
    triton = (
        f"loads in {', '.join(result.triton_releases)}" if result.triton_releases else "no release loads it"
    )
    inspected = result.inspection
    built = f"{inspected['layers']} layers, as planned" if inspected.get("run") else inspected["reason"]
    total = result.memory["total_bytes"] / 2**20
    return {
        "builder": f"{result.builder} {result.builder_version}, for {', '.join(result.compute_capability)}",
        "needs": ", ".join(needs),
        "triton": triton,
        "profiles": ", ".join(result.profiles),
        "memory": f"{total:,.0f} MiB on the GPU at most, by estimate, "
        f"{result.memory['weights_bytes'] / 2**20:,.0f} of them weights",
        "inspected": built,
        "engine": f"{result.engine} ({result.engine_bytes / 2**20:.1f} MiB in {result.seconds:.1f} s)",
        "proof": str(result.network),
    }


def _show_bench(console: Any, result: EngineBench) -> None:
    from rich.table import Table

    table = Table("shape", "texts/s", "tokens/s", "p50 ms", "p90 ms", "p99 ms")
    for row in result.rows:
        table.add_row(
            row.shape, f"{row.texts_per_second:,.1f}", f"{row.tokens_per_second:,.0f}",
            *(f"{value:.3f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms)),
        )  # fmt: skip
    console.print(f"{result.engine} on {result.gpu}, {result.builder}")
    console.print(table)


_SHOWN = (
    "MATRIX_MULTIPLY",
    "NORMALIZATION",
    "SOFTMAX",
    "ELEMENTWISE",
    "ACTIVATION",
    "UNARY",
    "GATHER",
    "REDUCE",
)
