"""The command `prepare`."""

from __future__ import annotations

from dataclasses import replace

import bertmp
from bertmp.cli.command import CommandResult
from bertmp.cli.progress import progress_bar
from bertmp.pretraining.prepare_options import PrepareOptions


def prepare(options: PrepareOptions) -> CommandResult:
    """Tokenize a corpus once; 'bertmp train pretraining --data STORE' then maps it into memory."""
    with progress_bar() as progress:
        result = bertmp.prepare(replace(options, progress=progress))
    counts = result.counts
    dropped = f"; {counts.dropped} pairs with an empty text were skipped" if counts.dropped else ""
    return CommandResult(
        result.to_json(),
        f"{result.store}: {counts.documents} documents, {counts.sentences} sentences, "
        f"{counts.tokens} tokens in {result.seconds:.1f} s{dropped}",
    )
