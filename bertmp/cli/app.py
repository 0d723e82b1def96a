"""All commands under one name.

A command parses, calls one public function, and renders what it returns. Nothing heavy is imported here: a
command imports its package when it runs.
"""

from __future__ import annotations

import typer

from bertmp.cli import compare, engine, environment, export, infer, predict, verify
from bertmp.cli import serve as serving
from bertmp.cli.command import add_command

app = typer.Typer(
    name="bertmp",
    help="BERT from mixed-precision training to a served model, its accuracy verified at every step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TRAIN = "bertmp train classification"
COMMANDS = (
    ("doctor", environment.doctor, "bertmp doctor --json"),
    ("setup", environment.setup, "bertmp setup triton"),
    ("download", environment.download, "bertmp download minilm trec"),
    ("prepare", environment.prepare, "bertmp prepare corpus.txt --model minilm --out corpus"),
    ("train", environment.train, f"{_TRAIN} --data train.tsv --eval-data test.tsv --model minilm --out run"),
    ("export", export.export, "bertmp export run/final --out bundle"),
    ("convert", export.convert, "bertmp convert model.onnx model.fp16.onnx --calibration data.tsv --explain"),
    ("explain", export.explain, "bertmp explain model.fp16.onnx --calibration data.tsv"),
    ("build-engine", engine.build_engine, "bertmp build-engine BUNDLE --profile 1x8:8x64:32x128"),
    ("parity", engine.parity, "bertmp parity bundle --data test.tsv --server localhost:8001 --model trec"),
    ("compare", compare.compare, "bertmp compare bundle-1 bundle-2"),
    ("verify", verify.verify, "bertmp verify bundle"),
    (
        "predict",
        predict.predict,
        "bertmp predict bundle --data test.tsv --out answers.jsonl --against bundle",
    ),
    ("deploy", serving.deploy, "bertmp deploy bundle --name trec --server 127.0.0.1:8001"),
    ("rollback", serving.rollback, "bertmp rollback trec"),
    ("prune", serving.prune, "bertmp prune trec --keep 3"),
    ("models", serving.models, "bertmp models --json"),
    ("serve", serving.serve, "bertmp serve --http-port 0 --grpc-port 0 --metrics-port 0"),
    ("infer", infer.infer, "bertmp infer trec 'What is the capital of France ?' --url grpc://127.0.0.1:8001"),
    ("bench", serving.bench, "bertmp bench trec --data test.tsv --concurrency 1,4,16 --seconds 10"),
)
"""Each command's name, its function, and an example."""

for name, function, example in COMMANDS:
    add_command(app, name, function, example)


def _version(value: bool) -> None:
    if value:
        from bertmp import __version__

        typer.echo(f"bertmp {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """BERT from mixed-precision training to a served model, its accuracy verified at every step."""
