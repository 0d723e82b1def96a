"""The commands that serve: deploy, rollback, prune, models, serve, bench."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult, new_table, progress_bar
from bertmp.core.errors import InputError
from bertmp.core.options import option
from bertmp.export.cpu_session.worker import give_way
from bertmp.serve import serve_options, serving_options
from bertmp.serve.load_test.options import BenchOptions

if TYPE_CHECKING:
    from bertmp.serve.canary import CanaryResult
    from bertmp.serve.deployment import Deployment
    from bertmp.serve.load_test.figures import BenchResult
    from bertmp.serve.version_log import VersionRecord


CPU_CONFIG = "cpu"
"""The configuration for machines without a GPU."""


def deploy(options: serving_options.DeployOptions) -> CommandResult:
    """Write a bundle as a model's newest version, and bring it into service or refuse it."""
    _let_clients_go_first(options.server)
    result = bertmp.deploy(options)
    return CommandResult(result.to_json(), _deployment(result))


def rollback(options: serving_options.RollbackOptions) -> CommandResult:
    """Go back to the version before the live one, or to any other that is kept."""
    _let_clients_go_first(options.server)
    result = bertmp.rollback(options)
    return CommandResult(result.to_json(), _deployment(result))


def _let_clients_go_first(server: str | None) -> None:
    """Lowers this process's priority where a server, maybe on this machine, answers meanwhile."""
    if server is not None:
        give_way()


def prune(options: serving_options.PruneOptions) -> CommandResult:
    """Remove a model's older versions."""
    result = bertmp.prune(options)
    removed, kept = (", ".join(map(str, some)) or "none" for some in (result.removed, result.kept))
    return CommandResult(result.to_json(), f"{result.name}: removed {removed}, kept {kept}")


def models(options: serving_options.ModelsOptions) -> CommandResult:
    """List every model's versions with their parity and state."""
    found = bertmp.models(options)
    return CommandResult([entry.to_json() for entry in found], lambda console: _print_models(console, found))


def serve(options: serve_options.ServeOptions, as_json: bool) -> CommandResult:
    """Run a Triton server in the foreground until Ctrl-C or SIGTERM; print 'ready' and its addresses."""

    def log(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        print(message, file=sys.stderr, flush=True)  # noqa: T201

    def on_ready(server: serve_options.RunningServer) -> None:
        text = json.dumps(server.to_json()) if as_json else _ready(server, options.repository)
        print(text, flush=True)  # noqa: T201

    bertmp.serve_repository(replace(options, on_ready=on_ready, progress=log))
    return CommandResult(None)  # its JSON was printed when the server was ready


class BenchCommandOptions(BenchOptions):
    """Those of `bertmp.bench`, and the engine that is measured in place of a served model."""

    engine: Path | None = option(
        default=None,
        metavar="BUNDLE",
        help="Measure this bundle's engine by itself instead, on this machine's GPU, without a server.",
    )

    def check(self) -> None:
        if self.engine is None:
            super().check()
        elif self.name:
            raise InputError("a model and an engine at once", self.name, "name one of them")


def bench(options: BenchCommandOptions) -> CommandResult:
    """Measure a served model under load, or an engine by itself; exit 1 on a failed or wrong answer."""
    if options.engine is not None:
        from bertmp.cli.engine import bench_engine

        data = Path(str(options.data)) if options.data else None
        return bench_engine(options.engine, data, options.seconds, options.columns())
    with progress_bar() as progress:
        result = bertmp.bench(replace(options, progress=progress))
    code = 1 if result.failures else 0
    return CommandResult(result.to_json(), lambda console: _print_bench(console, result), code)


def _deployment(result: Deployment) -> str:
    where = f" on {result.server}" if result.server else ""
    state = "is live" if result.server else "is the one that a server takes when it starts"
    head = f"{result.name} version {result.version} {state}{where} (parity: {result.parity})"
    notes = [note for note in result.notes if not note.startswith("parity:")]
    if result.new and result.server is None:
        notes.append("a running server goes on with its own version: --server URL makes it switch")
    if result.signed_by:
        notes.append(f"signed with the key {result.signed_by}")
    if result.canary is not None:
        notes.append(_tried(result.canary))
    if result.serving is not None:
        notes.append(f"without a GPU: {result.serving.sentence()}, in {result.precision.upper()}")
    return "\n".join([head, *(f"  {note}" for note in notes)])


def _tried(canary: CanaryResult) -> str:
    compared = f"{canary.golden} recorded answers within {canary.golden_error:.1e}, " if canary.golden else ""
    load = f"{canary.requests} requests without a failure, p99 {canary.p99_ms:.0f} ms"
    return f"tried over {' and '.join(canary.protocols)}: {compared}{canary.consistency.sentence()}, {load}"


def _ready(server: serve_options.RunningServer, repository: Path) -> str:
    from bertmp.serve.repository import serving_tables

    tables = serving_tables(repository) if server.config_name == CPU_CONFIG else {}
    chosen = f"configuration '{server.config_name}'" if server.config_name else "default configuration"
    return (
        f"ready: http {server.http}, grpc {server.grpc}, metrics {server.metrics}/metrics, "
        f"health {server.health}/ready\n"
        f"  models: {', '.join(server.models)}\n"
        + "".join(f"  {name}: {table.sentence()}\n" for name, table in tables.items())
        + f"  Triton {server.version}, {chosen} ({server.config_reason}); Ctrl-C stops it"
    )


def _print_models(console: Any, found: list[VersionRecord]) -> None:
    if not found:
        console.print("nothing is deployed")
        return
    rows = (
        (one.name, one.version, one.state, one.parity_verdict, one.precision, one.created) for one in found
    )
    console.print(new_table(rows, ("model", "version", "state", "parity", "on a CPU", "created")))


def _print_bench(console: Any, result: BenchResult) -> None:
    from rich.markup import escape

    where = f"{escape(result.model)} at {result.address} over {result.protocol}"
    console.print(f"{where}, one input per request, sent by {escape(result.generator)}; latencies in ms")
    measured = ("requests_per_second", "texts_per_second", "tokens_per_second", *_PERCENTILES.values())
    rows = (
        (level.short_name, *(_one_decimal(getattr(level, name)) for name in measured), level.failures)
        for level in result.levels
    )
    console.print(new_table(rows, ("load",), ("req/s", "texts/s", "tokens/s", *_PERCENTILES, "failed")))
    for level in result.levels:
        for message, count in level.errors.items():
            console.print(f"[red]{count} failed with {level.name}:[/red] {escape(message)}")


_PERCENTILES = {"p50": "p50_ms", "p90": "p90_ms", "p99": "p99_ms", "p99.9": "p99_9_ms"}


def _one_decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
