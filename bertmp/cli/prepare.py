"""The command that prepares a corpus for pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertmp.cli.command import CommandResult
from bertmp.cli.command import function_command as command


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this module."""

    @command(app, "prepare", "bertmp prepare corpus.txt --model minilm --out corpus")
    def prepare(
        data: Annotated[
            Path,
            typer.Argument(
                metavar="CORPUS",
                help=".txt (a sentence a line, blank lines between documents), .tsv, .csv, .jsonl, .parquet",
            ),
        ],
        model: Annotated[
            Path, typer.Option(metavar="CHECKPOINT", help="The checkpoint whose tokenizer makes the tokens.")
        ],
        out: Annotated[Path, typer.Option(metavar="STORE", help="The folder of the prepared corpus.")],
        workers: Annotated[
            int | None, typer.Option(help="Processes that tokenise; default: one a processor.")
        ] = None,
        text_column: Annotated[str, typer.Option(help="Name of the text's column.")] = "text",
        text_pair_column: Annotated[
            str, typer.Option(help="Name of the column of the text that follows.")
        ] = "text_pair",
    ) -> CommandResult:
        """Tokenise a corpus once; 'bertmp train pretraining --data STORE' then maps it into memory."""
        from bertmp.environment.downloads import downloaded
        from bertmp.pretraining.prepare import prepare as run
        from bertmp.pretraining.prepare_progress import preparation_bar

        result = run(
            data,
            downloaded(model),
            out,
            workers=workers,
            text_column=text_column,
            text_pair_column=text_pair_column,
            progress=preparation_bar,
        )
        counts = result.counts
        dropped = f"; {counts.dropped} pairs had an empty text and were left out" if counts.dropped else ""
        return CommandResult(
            result.to_json(),
            f"{result.store}: {counts.documents} documents, {counts.sentences} sentences, "
            f"{counts.tokens} tokens in {result.seconds:.1f} s{dropped}",
        )
