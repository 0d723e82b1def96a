"""`bertmp train`: from options to a trained checkpoint."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.options import keywords_of
from bertmp.core.progress import null_progress
from bertmp.environment.downloads import downloaded
from bertmp.model.checkpoint import LoadedCheckpoint, load_checkpoint, save_checkpoint
from bertmp.model.heads import LossOptions
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.checkpoints import remove_leftovers, run_identity
from bertmp.training.distributed import DistributedContext, checkpoint_activations, join
from bertmp.training.distributed.sharding import Objective
from bertmp.training.loop import Trainer
from bertmp.training.metrics import Evaluation, evaluate
from bertmp.training.stability.activation_ranges import FILE as RANGES
from bertmp.training.stability.activation_ranges import measured, to_json
from bertmp.training.tasks import READERS, Task
from bertmp.training.train_options import TrainOptions


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        checkpoint: the trained checkpoint's folder, `RUN/final`.
        steps, skipped_steps: steps done, and how many of these were skipped as non-finite.
        examples_per_second, tokens_per_second: over training alone, without set-up and evaluation.
        evaluation: the last one; None without evaluation data.
        precision: `fp32`, `bf16` or `fp16`.
        peak_memory_bytes: of the process on the CPU, of the allocator on CUDA.
        truncated: examples cut to the maximum length.
    """

    checkpoint: Path
    steps: int
    skipped_steps: int
    examples_per_second: float
    tokens_per_second: float
    evaluation: Evaluation | None
    precision: str
    peak_memory_bytes: int
    truncated: int

    def to_json(self) -> dict[str, Any]:
        evaluation = self.evaluation.to_json() if self.evaluation else {}
        values = {**vars(self), "checkpoint": str(self.checkpoint), "evaluation": evaluation}
        return {name.replace("evaluation", "eval"): value for name, value in values.items()}


@keywords_of(TrainOptions)
def train(options: TrainOptions) -> TrainResult:
    """Trains a model and writes `out/final`, `out/metrics.jsonl` and `out/config.toml`.

    Raises:
        InputError: bad options, data or checkpoint.
        TrainingStopped: loss or gradients stay non-finite.
    """
    with join() as processes:
        options = replace(options, model=downloaded(options.model))
        context = processes.arrange(options.data_parallel, options.tensor_parallel, options.fsdp)
        if not context.is_main:
            options = replace(options, progress=null_progress)
        result = _train(options, context)
        context.barrier()  # until the first process has written the checkpoint
        return result


def _train(settings: TrainOptions, context: DistributedContext) -> TrainResult:
    policy = PrecisionPolicy.resolve(settings.precision, settings.loss_scale, context.device.type, settings)
    task = READERS[settings.task](settings)
    loaded = load_checkpoint(settings.model, task.head or settings.task, task.labels, settings.seed)
    _limit_length(loaded, settings.max_length)
    train_data, eval_data = task.encode(loaded.tokenizer)
    _check_folder(settings)
    objective = Objective(loaded.model, _loss_options(settings, task))
    if settings.activation_checkpointing:
        checkpoint_activations(objective.head)
    identity = run_identity(settings, loaded, policy)
    trainer = Trainer(objective, train_data, eval_data, settings, policy, context, identity)
    if loaded.config.text_pairs and not train_data.pairs:
        settings.progress("the checkpoint was trained on pairs of texts, and the data has single ones")
    config = loaded.config.with_text_pairs(train_data.pairs)
    if settings.keep_best and context.is_main:
        best_folder, parts = settings.out / "best", (config, loaded.tokenizer)
        trainer.on_best = lambda head: save_checkpoint(best_folder, head, *parts)
    notes = _resume(trainer)
    context.barrier()
    if context.is_main:
        _prepare_folder(settings)
    context.barrier()
    for line in (*notes, *_warnings(loaded, trainer)):
        settings.progress(line)
    evaluation = trainer.train()
    checkpoint = settings.out / "final"
    trained = context.full_head(objective.head)
    if settings.keep_best and trainer.eval_data is not None and trainer.best.step != trainer.position.step:
        context.barrier()
        best = load_checkpoint(settings.out / "best", trained.task, task.labels)
        best.model.shape_grid = trained.shape_grid
        trained, trainer.ranges = best.model.to(context.device), None
        evaluation = evaluate(trained, trainer.eval_data, context)
    # Measured unless the last evaluation recorded them.
    found = trainer.ranges or measured(trained, trainer.eval_data, trainer.data, context)
    ranges = to_json(found, str(Path(settings.eval_data or settings.data).resolve()), context)
    if context.is_main:
        save_checkpoint(checkpoint, trained, config, loaded.tokenizer, [(RANGES, ranges)])
    truncated = train_data.truncated + (eval_data.truncated if eval_data else 0)
    position, seconds = trainer.position, trainer.position.seconds or float("inf")
    return TrainResult(
        checkpoint=checkpoint,
        steps=position.step,
        skipped_steps=position.skipped,
        examples_per_second=position.examples / seconds,
        tokens_per_second=position.tokens / seconds,
        evaluation=evaluation,
        precision=policy.mode,
        peak_memory_bytes=_peak_memory(context.device),
        truncated=truncated,
    )


def _resume(trainer: Trainer) -> list[str]:
    """Loads the newest intact state if the run is to be resumed; returns lines for the log."""
    if not trainer.settings.resume:
        newest = trainer.checkpoints.states.newest_step()
        replaced = (
            f"the states of an earlier run, up to step {newest}, are replaced; --resume goes on from them"
        )
        return [] if newest is None else [replaced]
    notes: list[str] = []
    state = trainer.checkpoints.states.newest(lambda message, *_: notes.append(message))
    trainer.context.assert_equal_across_ranks(state and state.position.step, "the state they resume from")
    if state is None:
        return [*notes, "no state to resume from: starting from the beginning"]
    trainer.resume(state)
    return [*notes, f"resuming after step {trainer.position.step}"]


def _loss_options(settings: TrainOptions, task: Task) -> LossOptions:
    """Label smoothing and class weights; balanced ones are examples / (classes × the class's examples)."""
    if settings.class_weights == "none":
        return LossOptions(settings.label_smoothing)
    if not task.class_counts:
        raise InputError("the task has no classes to balance", "--class-weights", "leave it out")
    mean = sum(task.class_counts) / len(task.class_counts)
    return LossOptions(
        settings.label_smoothing, [mean / count if count else 1.0 for count in task.class_counts]
    )


def _limit_length(loaded: LoadedCheckpoint, max_length: int | None) -> None:
    """Sets the most tokens of a text; by default the checkpoint's."""
    positions = loaded.config.max_position_embeddings
    if max_length is not None and max_length > positions:
        what = f"--max-length {max_length} is beyond the model's {positions} positions"
        raise InputError(what, "--max-length", "reduce it")
    loaded.tokenizer.max_length = max_length or loaded.tokenizer.max_length


def _check_folder(settings: TrainOptions) -> None:
    """Checks that the folder is empty or a run's, unfinished unless it may be replaced.

    Raises:
        InputError: it holds a finished run or something else, or is a file.
    """
    out = settings.out
    # A run without tomli-w wrote no config.toml.
    is_run = any((out / name).is_file() for name in ("config.toml", "metrics.jsonl"))
    if out.is_dir() and any(out.iterdir()) and not is_run:
        raise InputError("the folder holds something that is not a run", out, "choose another --out")
    if out.exists() and not out.is_dir():
        raise InputError("the run's folder is a file", out, "choose another --out")
    if (out / "final").is_dir() and not (settings.resume or settings.overwrite):
        raise InputError(
            "the folder holds a finished run", out, "replace it with --overwrite, or choose another --out"
        )


def _prepare_folder(settings: TrainOptions) -> None:
    """Prepares the run's folder, after all checks of the input have passed."""
    remove_leftovers(settings.out)
    if not settings.resume:
        for folder in ("steps", "last-good", "best", "tensorboard"):
            shutil.rmtree(settings.out / folder, ignore_errors=True)
        (settings.out / "metrics.jsonl").unlink(missing_ok=True)
    try:
        settings.save(settings.out / "config.toml")
    except MissingComponent as error:
        settings.progress(f"the settings are not saved: {error}")


def _warnings(loaded: LoadedCheckpoint, trainer: Trainer) -> Iterator[str]:
    """Lines for the log before the run begins."""
    policy, truncated = trainer.policy, trainer.data.truncated
    yield from loaded.notes()
    if truncated:
        yield f"{truncated} training examples are longer than the model takes and were truncated"
    if trainer.settings.loss_scale != "dynamic" and policy.mode != "fp16":
        yield f"--loss-scale has no effect in {policy.mode}, which has the range of FP32"
    yield f"training in {policy.mode} on {policy.device}"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
