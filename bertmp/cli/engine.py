"""`bertmp build-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertmp.cli.base import Outcome, command

if TYPE_CHECKING:
    from bertmp.export.engine.build import EngineResult


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of the engine room."""
    command(
        app,
        "build-engine",
        example="bertmp build-engine BUNDLE --profile 1x8:8x64:32x128",
    )(build_engine)


def build_engine(
    target: Annotated[Path, typer.Argument(metavar="BUNDLE|GRAPH", help="A bundle, or an FP16 ONNX graph.")],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Shapes to build for, each BATCHxLENGTH; one shape alone is static. Repeat for several. "
            "[default: one a length bucket]",
        ),
    ] = None,
    builder: Annotated[
        str, typer.Option(metavar="auto|tensorrt|tensorrt-rtx", help="Which builder.")
    ] = "auto",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8.9", help="A GPU to build for; repeat for several (TensorRT-RTX). [default: portable]"
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(metavar="N", help="The largest batch of the default profiles.")
    ] = 32,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernel timings, read and written (TensorRT).")
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
) -> Outcome:
    """Build a TensorRT engine of the FP16 graph and prove its precision, layer by layer."""
    from bertmp.export.engine.build import build_engine as run
    from bertmp.export.engine.progress import build_bar

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
            out=out,
            watch=watch,
        )
    return Outcome(result.to_json(), text=lambda console: _show(console, result))


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
    console.print(
        f"builder   {result.builder} {result.builder_version}, for {', '.join(result.compute_capability)}"
    )
    console.print(f"profiles  {', '.join(result.profiles)}")
    console.print(
        f"engine    {result.engine} ({result.engine_bytes / 2**20:.1f} MiB in {result.seconds:.1f} s)"
    )
    console.print(f"proof     {result.network}")


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
