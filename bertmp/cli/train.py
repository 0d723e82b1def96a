"""The command `train`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bertmp
from bertmp.cli.command import CommandResult
from bertmp.cli.progress import progress_bar
from bertmp.training.train_options import TrainOptions

if TYPE_CHECKING:
    from bertmp.training.train import TrainResult
from bertmp.pretraining.prepare_options import PrepareOptions


def train(options: TrainOptions) -> CommandResult:
    """Train a BERT in mixed precision, with FP32 master weights, LayerNorm, softmax and loss."""
    with progress_bar() as progress:
        result = bertmp.train(replace(options, progress=progress))
    from bertmp.training.distributed import is_first

    if not is_first():
        raise SystemExit(0)
    return CommandResult(result.to_json(), lambda console: _show(console, result))


def _show(console: Any, result: TrainResult) -> None:
    """The run in a table."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_row("checkpoint", str(result.checkpoint))
    skipped = f", {result.skipped_steps} skipped" if result.skipped_steps else ""
    table.add_row("steps", f"{result.steps}{skipped}")
    table.add_row("precision", result.precision)
    for name, value in result.evaluation.figures.items() if result.evaluation else ():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    speed = f"{result.examples_per_second:.1f} examples/s, {result.tokens_per_second:,.0f} tokens/s"
    table.add_row("speed", speed)
    table.add_row("peak memory", f"{result.peak_memory_bytes / 1e6:,.0f} MB")
    if result.truncated:
        table.add_row("cut", f"{result.truncated} texts were longer than the model takes")
    console.print(table)


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
