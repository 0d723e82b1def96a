"""The commands that serve: deploy, rollback, models, serve, infer, bench."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertmp.cli.command import CommandResult
from bertmp.cli.command import function_command as command

if TYPE_CHECKING:
    from bertmp.serve.client import Answer
    from bertmp.serve.deploy import Deployment
    from bertmp.serve.load_test import BenchResult
    from bertmp.serve.server import Running
    from bertmp.serve.version_log import VersionRecord

Repository = Annotated[Path, typer.Option(metavar="DIR", help="The Triton model repository.")]
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="A running Triton that serves the repository: HTTP or gRPC.")
]
Protocol = Annotated[str, typer.Option(help="How to ask: grpc or http.")]
Url = Annotated[
    str | None, typer.Option(metavar="URL", help="The server; 127.0.0.1:8001 for grpc, :8000 for http.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
REPOSITORY = Path("model_repository")


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this module."""
    _add_repository_commands(app)
    _add_serve(app)
    _add_client_commands(app)


def _add_repository_commands(app: typer.Typer) -> None:
    @command(app, "deploy", example="bertmp deploy bundle --name trec --server 127.0.0.1:8001")
    def deploy(
        bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
        name: Annotated[str, typer.Option(metavar="NAME", help="The model's name.")],
        repository: Repository = REPOSITORY,
        server: Server = None,
        for_triton: Annotated[
            str | None,
            typer.Option(
                metavar="25.10",
                help="The Triton release that serves it; an engine that it cannot load is refused.",
            ),
        ] = None,
    ) -> CommandResult:
        """Write a bundle as a model's newest version, and bring it into service or refuse it."""
        from bertmp.serve.deploy import deploy

        result = deploy(bundle, name, repository, server, for_triton)
        return CommandResult(result.to_json(), _deployment(result))

    @command(app, "rollback", example="bertmp rollback trec")
    def rollback(name: Name, repository: Repository = REPOSITORY, server: Server = None) -> CommandResult:
        """Go back to the version before the live one."""
        from bertmp.serve.deploy import rollback

        result = rollback(name, repository, server)
        return CommandResult(result.to_json(), _deployment(result))

    @command(app, "models", example="bertmp models --json")
    def models(repository: Repository = REPOSITORY) -> CommandResult:
        """List every model's versions with their parity and state."""
        from bertmp.serve.deploy import models

        found = models(repository)
        return CommandResult(
            [entry.to_json() for entry in found], lambda console: _print_models(console, found)
        )


def _add_serve(app: typer.Typer) -> None:
    @command(app, "serve", example="bertmp serve --http-port 0 --grpc-port 0 --metrics-port 0")
    def serve(
        context: typer.Context,
        repository: Repository = REPOSITORY,
        host: Annotated[
            str,
            typer.Option(help="The address to listen on; the default is reachable from this machine only."),
        ] = "127.0.0.1",
        http_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
        grpc_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8001,
        metrics_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8002,
        config_name: Annotated[
            str,
            typer.Option(
                metavar="NAME",
                help="The models' configuration: auto, default (config.pbtxt), cpu, or another.",
            ),
        ] = "auto",
    ) -> CommandResult:
        """Run a Triton server in the foreground until Ctrl-C; print 'ready' and its addresses."""
        from bertmp.serve.server import serve_repository

        as_json = bool(context.params.get("as_json"))
        chosen = {"auto": None, "default": ""}.get(config_name, config_name)
        serve_repository(
            repository,
            host,
            http_port,
            grpc_port,
            metrics_port,
            chosen,
            on_ready=lambda it: _ready(it, as_json),
        )
        return CommandResult({})


def _add_client_commands(app: typer.Typer) -> None:
    @command(app, "infer", example="bertmp infer trec 'What is the capital of France ?' --protocol http")
    def infer(
        name: Name,
        texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Texts.")] = None,
        file: Annotated[
            Path | None, typer.Option(metavar="FILE", help="A data file, of which the texts are read too.")
        ] = None,
        protocol: Protocol = "grpc",
        url: Url = None,
    ) -> CommandResult:
        """Ask a served model for the label of each text."""
        from bertmp.serve.client import infer

        found = infer(name, texts or [], file, protocol, url)
        return CommandResult([answer.to_json() for answer in found], _answers(found))

    @command(app, "bench", example="bertmp bench trec --texts test.tsv --concurrency 1,4,16 --seconds 10")
    def bench(
        name: Annotated[str | None, typer.Argument(metavar="NAME", help="The model.")] = None,
        texts: Annotated[
            Path | None, typer.Option(metavar="FILE", help="A data file, of which the texts are asked.")
        ] = None,
        concurrency: Annotated[str, typer.Option(help="Numbers of clients, measured in turn.")] = "1,4,16",
        seconds: Annotated[float, typer.Option(help="The measured time of each.")] = 10.0,
        protocol: Protocol = "grpc",
        url: Url = None,
        engine: Annotated[
            Path | None,
            typer.Option(
                metavar="BUNDLE",
                help="Measure this bundle's engine by itself instead, on this machine's GPU, without a "
                "server.",
            ),
        ] = None,
    ) -> CommandResult:
        """Measure a served model under load, or an engine by itself; exit 1 where a request failed."""
        from bertmp.core.errors import InputError

        if engine is not None:
            from bertmp.cli.engine import bench_engine

            if name is not None:
                raise InputError("a model and an engine at once", name, "name one of them")
            return bench_engine(engine, texts, seconds)
        if name is None or texts is None:
            missing = "a model's NAME" if name is None else "texts"
            raise InputError(
                f"bench needs {missing}", "", "bertmp bench NAME --texts FILE, or --engine BUNDLE"
            )
        from rich.console import Console

        from bertmp.data.readers import read_examples
        from bertmp.serve.load_test import bench

        clients = _numbers(concurrency)
        with Console(stderr=True).status("starting") as status:
            result = bench(name, read_examples(texts).texts, clients, seconds, protocol, url, status.update)
        return CommandResult(
            result.to_json(), lambda console: _print_bench(console, result), 1 if result.failures else 0
        )


def _numbers(text: str) -> list[int]:
    from bertmp.core.errors import InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"'{text}' is no list of numbers", "--concurrency", "write it like 1,4,16"
        ) from error


def _deployment(result: Deployment) -> str:
    where = f" on {result.server}" if result.server else ""
    head = f"{result.name} version {result.version} is live{where} (parity: {result.parity})"
    notes = [note for note in result.notes if not note.startswith("parity:")]
    if result.new and result.server is None:
        notes.append("a server that is running takes it with --server URL, another one when it starts")
    return "\n".join([head, *(f"  {note}" for note in notes)])


def _ready(running: Running, as_json: bool) -> None:
    import json

    if as_json:
        text = json.dumps(running.to_json())
    else:
        chosen = f"configuration '{running.config_name}'" if running.config_name else "default configuration"
        text = "\n".join(
            [
                f"ready: http {running.http}, grpc {running.grpc}, metrics {running.metrics}/metrics",
                f"  models: {', '.join(running.models)}",
                f"  Triton {running.version}, {chosen} ({running.config_reason}); Ctrl-C ends it",
            ]
        )
    print(text, flush=True)  # noqa: T201


def _answers(found: list[Answer]) -> str:
    for number, answer in enumerate(found, 1):
        if answer.truncated:
            print(f"text {number} was too long and lost its tail", file=sys.stderr)  # noqa: T201
    return "\n".join(f"{answer.label}\t{answer.probability:.4f}" for answer in found)


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column, justify="right" if column not in ("model", "state", "parity", "created") else "left"
        )
    return table


def _print_models(console: Any, found: list[VersionRecord]) -> None:
    if not found:
        console.print("nothing is deployed")
        return
    table = _table("model", "version", "state", "parity", "created")
    for entry in found:
        table.add_row(entry.name, str(entry.version), entry.state, entry.parity_in_words, entry.created)
    console.print(table)


def _print_bench(console: Any, result: BenchResult) -> None:
    from rich.markup import escape

    console.print(f"{escape(result.model)} at {result.address} over {result.protocol}, one text a request")
    table = _table("clients", "req/s", "texts/s", "tokens/s", "p50 ms", "p90 ms", "p99 ms", "failed")
    for level in result.levels:
        rates = (level.requests_per_second, level.texts_per_second, level.tokens_per_second)
        times = (level.p50_ms, level.p90_ms, level.p99_ms)
        table.add_row(
            str(level.concurrency),
            *(f"{rate:,.1f}" for rate in rates),
            *("-" if value is None else f"{value:.1f}" for value in times),
            str(level.failures),
        )
    console.print(table)
    for level in result.levels:
        for message, count in level.errors.items():
            console.print(f"[red]{count} failed with {level.concurrency} clients:[/red] {escape(message)}")
