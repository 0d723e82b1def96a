"""`bertmp train`: settings in, a checkpoint out."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from bertmp.errors import InputError
from bertmp.files import sha256_file
from bertmp.model.checkpoint import LoadedCheckpoint, load_checkpoint, save_checkpoint
from bertmp.model.heads import SequenceClassifier
from bertmp.tokenizer import Tokenizer
from bertmp.training.amp import Policy
from bertmp.training.evaluate import Evaluation
from bertmp.training.loop import Run, Watcher
from bertmp.training.settings import TrainSettings
from bertmp.training.state import load_state
from bertmp.training.task import encode, read_classification


@dataclass(frozen=True)
class TrainResult:
    """What a run reached.

    Attributes:
        checkpoint: the trained checkpoint's folder, `RUN/final`.
        steps, skipped_steps: done, and of these left out.
        examples_per_second, tokens_per_second: over training alone, without set-up and evaluation.
        evaluation: the last one, where there was evaluation data.
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
        return {
            "checkpoint": str(self.checkpoint),
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "examples_per_second": self.examples_per_second,
            "tokens_per_second": self.tokens_per_second,
            "eval": self.evaluation.to_json() if self.evaluation else {},
            "precision": self.precision,
            "peak_memory_bytes": self.peak_memory_bytes,
            "truncated": self.truncated,
        }


class Silent:
    """A watcher that shows nothing."""

    def step(self, step: int, loss: float, rate: float) -> None:
        return None

    def say(self, text: str) -> None:
        return None


Progress = Callable[[int, int], AbstractContextManager[Watcher]]
"""Given the steps in all and those done already, a context that shows the progress."""


def train(
    task: str,
    data: Path,
    model: Path,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = lambda total, done: nullcontext(Silent()),
    **options: Any,
) -> TrainResult:
    """Trains a model and writes `out/final`, `out/metrics.jsonl` and `out/config.toml`.

    Args:
        task, data, model, out: see `TrainSettings`, which also names every further option.
        resume: goes on from the newest state in `out/steps`; from the beginning where there is none.

    Errors: InputError for bad settings, data or checkpoint; TrainingStopped where gradients stay
    non-finite.
    """
    settings = TrainSettings(task=task, data=Path(data), model=Path(model), out=Path(out), **options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = Policy.resolve(settings.precision, settings.loss_scale, device.type)
    examples, eval_examples, labels = read_classification(settings)
    loaded = load_checkpoint(settings.model, task, labels, settings.seed)
    tokenizer = _shortened(loaded, settings.max_length)
    train_data = encode(examples, labels, tokenizer)
    eval_data = encode(eval_examples, labels, tokenizer) if eval_examples else None
    _prepare(settings.out, resume)
    settings.save(settings.out / "config.toml")
    head = cast(SequenceClassifier, loaded.model.to(device))
    run = Run(head, train_data, eval_data, settings, policy, device, _identity(settings), Silent())
    warnings: list[str] = []
    if resume:
        state = load_state(settings.out / "steps", run.identity, warnings.append)
        warnings.append("resuming" if state else "no state to resume from: starting from the beginning")
        if state:
            run.restore(*state)
    with progress(run.total, run.position.step) as watcher:
        run.watcher = watcher
        _announce(watcher, warnings, loaded, train_data.truncated, policy)
        evaluation = run.train()
    checkpoint = settings.out / "final"
    save_checkpoint(checkpoint, head, loaded.config, loaded.tokenizer)
    return _result(
        checkpoint, run, evaluation, train_data.truncated + (eval_data.truncated if eval_data else 0)
    )


def _shortened(loaded: LoadedCheckpoint, max_length: int | None) -> Tokenizer:
    positions = loaded.config.max_position_embeddings
    if max_length is not None and max_length > positions:
        raise InputError(
            f"--max-length {max_length} is beyond the model's {positions} positions",
            "--max-length",
            "lower it",
        )
    loaded.tokenizer.max_length = max_length or positions
    return loaded.tokenizer


def _prepare(out: Path, resume: bool) -> None:
    """Makes the run's folder ready: a new run replaces an old one, but nothing that is not a run's."""
    if out.is_dir() and any(out.iterdir()) and not (out / "config.toml").is_file():
        raise InputError("the folder holds something that is not a run", out, "choose another --out")
    if out.exists() and not out.is_dir():
        raise InputError("a file where the run's folder is to be", out, "choose another --out")
    if not resume:
        shutil.rmtree(out / "steps", ignore_errors=True)
        (out / "metrics.jsonl").unlink(missing_ok=True)


def _identity(settings: TrainSettings) -> dict[str, Any]:
    """What a resumed run must share with the state it goes on from."""
    return {
        "data": sha256_file(settings.data),
        "task": settings.task,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "precision": settings.precision,
        "max_length": settings.max_length,
    }


def _announce(
    watcher: Watcher, warnings: list[str], loaded: LoadedCheckpoint, truncated: int, policy: Policy
) -> None:
    for line in warnings:
        watcher.say(line)
    if loaded.new and len(loaded.new) <= 8:
        watcher.say(f"starts at random: {', '.join(loaded.new)}")
    if loaded.unused:
        watcher.say(f"not used from the checkpoint: {', '.join(loaded.unused)}")
    if truncated:
        watcher.say(f"{truncated} training texts are longer than the model takes and were cut")
    watcher.say(f"training in {policy.mode} on {policy.device}")


def _result(checkpoint: Path, run: Run, evaluation: Evaluation | None, truncated: int) -> TrainResult:
    position = run.position
    seconds = position.seconds or float("inf")
    return TrainResult(
        checkpoint=checkpoint,
        steps=position.step,
        skipped_steps=position.skipped,
        examples_per_second=position.examples / seconds,
        tokens_per_second=position.tokens / seconds,
        evaluation=evaluation,
        precision=run.policy.mode,
        peak_memory_bytes=_peak_memory(run.device),
        truncated=truncated,
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
