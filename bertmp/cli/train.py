"""The command that trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bertmp.cli.command import CommandResult
from bertmp.cli.command import function_command as command

if TYPE_CHECKING:
    from bertmp.training.train import TrainResult


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this module."""

    @command(
        app,
        "train",
        "bertmp train classification --data train.tsv --eval-data test.tsv --model minilm --out run",
    )
    def train(
        task: Annotated[
            str,
            typer.Argument(
                metavar="TASK", help="classification, token-classification, regression or pretraining."
            ),
        ],
        data: Annotated[
            Path,
            typer.Option(
                metavar="FILE",
                help="Examples: .tsv, .csv, .jsonl, .parquet. A corpus: these, .txt, or a prepared one",
            ),
        ],
        model: Annotated[
            Path,
            typer.Option(
                metavar="CHECKPOINT", help="A checkpoint folder, or a config.json for random weights."
            ),
        ],
        out: Annotated[Path, typer.Option(metavar="RUN", help="The run's folder.")],
        eval_data: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Examples to evaluate on after every epoch.")
        ] = None,
        precision: Annotated[
            str, typer.Option(help="auto, fp32, bf16 or fp16; auto is bf16 on the CPU, fp16 on CUDA.")
        ] = "auto",
        loss_scale: Annotated[str, typer.Option(help="'dynamic' or a number; for fp16.")] = "dynamic",
        epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 3,
        steps: Annotated[int | None, typer.Option(help="Steps, instead of epochs.")] = None,
        batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
        accumulate: Annotated[
            int, typer.Option(help="Micro-batches a step: less memory, the same step.")
        ] = 1,
        activation_checkpointing: Annotated[
            bool,
            typer.Option("--activation-checkpointing", help="Compute blocks twice: less memory, same step."),
        ] = False,
        data_parallel: Annotated[
            int | None,
            typer.Option(
                help="Groups of processes that share out a batch, with torchrun; default: all there are."
            ),
        ] = None,
        tensor_parallel: Annotated[
            int, typer.Option(help="Processes of a group, which share out each block.")
        ] = 1,
        shard: Annotated[
            bool,
            typer.Option(
                "--shard", help="Spread weights and optimizer states over the data-parallel processes."
            ),
        ] = False,
        workers: Annotated[int, typer.Option(help="Processes that prepare batches ahead of time.")] = 0,
        optimizer: Annotated[str, typer.Option(help="adamw, or lamb for large batches.")] = "adamw",
        learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
        weight_decay: Annotated[float, typer.Option(help="AdamW's decoupled weight decay.")] = 0.01,
        layer_decay: Annotated[
            float, typer.Option(help="Each block learns at this times the rate of the block above it.")
        ] = 1.0,
        warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = 0.1,
        max_grad_norm: Annotated[float, typer.Option(help="Clip gradients to this norm; 0: do not.")] = 1.0,
        max_length: Annotated[
            int | None, typer.Option(help="Cut texts to this many tokens; default: the model's positions.")
        ] = None,
        label_smoothing: Annotated[
            float, typer.Option(help="Share of a label's weight that is spread over all classes.")
        ] = 0.0,
        class_weights: Annotated[
            str, typer.Option(help="none, or balanced: weigh classes by the inverse of their frequency.")
        ] = "none",
        eval_every: Annotated[int, typer.Option(help="Evaluate every N steps; 0: every epoch.")] = 0,
        keep_best: Annotated[
            bool, typer.Option("--keep-best", help="Let RUN/final be the best evaluation's checkpoint.")
        ] = False,
        patience: Annotated[
            int, typer.Option(help="End after this many evaluations without a better one; 0: never.")
        ] = 0,
        no_nsp: Annotated[
            bool, typer.Option("--no-nsp", help="Pre-train on masked words alone, without next sentences.")
        ] = False,
        mask_rate: Annotated[float, typer.Option(help="Share of tokens masked in pre-training.")] = 0.15,
        whole_word_masking: Annotated[
            bool, typer.Option("--whole-word-masking", help="Mask all pieces of a word or none.")
        ] = False,
        short_rate: Annotated[
            float, typer.Option(help="Share of pre-training samples packed to a shorter length.")
        ] = 0.1,
        seed: Annotated[int, typer.Option(help="Seed of order, dropout and new weights.")] = 0,
        save_every: Annotated[int, typer.Option(help="Save a resumable state every N steps; 0: never.")] = 0,
        log_every: Annotated[int, typer.Option(help="Write metrics every N steps.")] = 10,
        keep: Annotated[int, typer.Option(help="How many of these states are kept.")] = 2,
        max_skipped: Annotated[
            int,
            typer.Option(help="Go back to the last good state after this many non-finite steps in a row."),
        ] = 10,
        max_rollbacks: Annotated[
            int, typer.Option(help="Stop (exit code 3) where the run would go back more often than this.")
        ] = 2,
        rollback_rate: Annotated[
            float, typer.Option(help="Factor on the learning rate after going back.")
        ] = 0.5,
        explosion_factor: Annotated[
            float, typer.Option(help="A loss of this many times the usual one explodes; 0: never.")
        ] = 4.0,
        explosion_steps: Annotated[
            int, typer.Option(help="Go back after this many exploding losses in a row.")
        ] = 20,
        initial_scale: Annotated[float, typer.Option(help="First dynamic loss scale.")] = 65536.0,
        scale_growth_interval: Annotated[
            int, typer.Option(help="Finite steps after which a dynamic loss scale doubles.")
        ] = 2000,
        scale_backoff: Annotated[
            float, typer.Option(help="Factor on a dynamic loss scale after an overflow.")
        ] = 0.5,
        min_scale: Annotated[float, typer.Option(help="A dynamic loss scale never falls below this.")] = 1.0,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest saved state.")] = False,
        text_column: Annotated[str, typer.Option(help="Name of the text's column.")] = "text",
        text_pair_column: Annotated[
            str, typer.Option(help="Name of the second text's column.")
        ] = "text_pair",
        label_column: Annotated[str, typer.Option(help="Name of the label's column.")] = "label",
        multi_label: Annotated[
            bool, typer.Option("--multi-label", help="In classification, a text may have several labels.")
        ] = False,
        label_separator: Annotated[
            str, typer.Option(help="What stands between a text's labels, with --multi-label.")
        ] = ",",
    ) -> CommandResult:
        """Train a BERT in mixed precision, with FP32 master weights, LayerNorm, softmax and loss."""
        options: dict[str, Any] = dict(locals())
        from bertmp.cli.progress import training_bar
        from bertmp.training.distributed import is_first
        from bertmp.training.train import train as run

        result = run(progress=training_bar, **options)
        if not is_first():
            raise SystemExit(0)
        return CommandResult(result.to_json(), lambda console: _show(console, result))


def _show(console: Any, result: TrainResult) -> None:
    """The run in a table."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_row("checkpoint", str(result.checkpoint))
    skipped = f", {result.skipped_steps} left out" if result.skipped_steps else ""
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
