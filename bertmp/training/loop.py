"""The training loop: batch, forward, loss, scaled backward, clip, step; logged, evaluated, saved."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from bertmp.data.batches import epoch_batches
from bertmp.errors import TrainingStopped
from bertmp.model.heads import SequenceClassifier
from bertmp.training.amp import Policy
from bertmp.training.evaluate import Evaluation, evaluate
from bertmp.training.metrics import MetricsFile
from bertmp.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from bertmp.training.settings import TrainSettings
from bertmp.training.state import Position, save_state
from bertmp.training.task import Dataset


class Watcher(Protocol):
    """Whoever shows the progress."""

    def step(self, step: int, loss: float, rate: float) -> None:
        """After each step: steps done, its loss, examples per second so far."""

    def say(self, text: str) -> None:
        """A line for the log."""


@dataclass
class Run:
    """One training run at work.

    Attributes:
        identity: what a resumable state must agree with.
        position: where the run stands.
    """

    model: SequenceClassifier
    data: Dataset
    eval_data: Dataset | None
    settings: TrainSettings
    policy: Policy
    device: torch.device
    identity: Mapping[str, Any]
    watcher: Watcher
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.model, self.settings)
        self.scaler = self.policy.scaler()
        self.per_epoch = math.ceil(len(self.data) / self.settings.batch_size)
        self.total = self.settings.steps or self.per_epoch * self.settings.epochs
        self._skipped_in_a_row = 0

    def restore(self, position: Position, tensors: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        self.position = position
        self.model.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.scaler.load_state_dict(tensors["scaler"])

    def train(self) -> Evaluation | None:
        """Trains to the end; returns the last evaluation.

        Errors: TrainingStopped where too many steps in a row were not finite. KeyboardInterrupt after
        the step at which Ctrl-C came; its state is saved where the run saves states.
        """
        metrics = MetricsFile(self.settings.out / "metrics.jsonl", self.position.step)
        log = _Log(metrics, self.settings.log_every, self.position)
        evaluation = None
        self.model.train()
        with _interrupt_between_steps() as interrupted:
            for epoch, batches in self._epochs():
                for rows in batches:
                    self._step(rows, epoch, log)
                    if interrupted():
                        self._leave()
                if self.eval_data is not None:
                    evaluation = self._evaluate(epoch, metrics)
        return evaluation

    def _epochs(self) -> Iterator[tuple[int, list[Any]]]:
        """The epochs and batches that are still to be done."""
        done = self.position.step
        for epoch in range(done // self.per_epoch, math.ceil(self.total / self.per_epoch)):
            batches = epoch_batches(self.data.lengths, self.settings.batch_size, self.settings.seed, epoch)
            first = max(0, done - epoch * self.per_epoch)
            yield epoch, batches[first : self.total - epoch * self.per_epoch]

    def _step(self, rows: Any, epoch: int, log: _Log) -> None:
        started = time.perf_counter()
        step = self.position.step
        # Dropout depends on (seed, step) alone, so that a resumed run draws what the first one drew.
        torch.manual_seed(self.settings.seed * 1_000_003 + step)
        batch, targets = self.data.batch(rows)
        batch, targets = batch.to(self.device), targets.to(self.device)
        rate = learning_rate(step, self.total, self.settings)
        set_learning_rate(self.optimizer, rate)
        with self.policy.autocast():
            logits = self.model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        loss = self.model.loss(logits, targets)
        self.scaler.backward(loss)
        self.scaler.unscale(self.optimizer)
        limit = self.settings.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        finite = math.isfinite(norm)
        scale = self.scaler.value
        self.scaler.step(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.position = Position(
            step + 1,
            self.position.skipped + (not finite),
            self.position.seconds + time.perf_counter() - started,
            self.position.examples + len(rows),
            self.position.tokens + batch.tokens,
        )
        last = float(loss.detach())
        log.add(
            self.position,
            last,
            epoch=(step + 1) / self.per_epoch,
            learning_rate=rate,
            loss_scale=scale,
            grad_norm=norm,
        )
        self.watcher.step(step + 1, last, self.position.examples / self.position.seconds)
        self._watch(finite)
        if self.settings.save_every and (step + 1) % self.settings.save_every == 0:
            self.save()

    def _watch(self, finite: bool) -> None:
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if not finite:
            self.watcher.say(f"step {self.position.step}: a gradient was not finite, the step was left out")
        if self._skipped_in_a_row >= self.settings.max_skipped:
            raise TrainingStopped(
                f"{self._skipped_in_a_row} steps in a row with gradients that are not finite",
                f"step {self.position.step}",
                "lower --learning-rate, check the data, or train in bf16 or fp32",
            )

    def _evaluate(self, epoch: int, metrics: MetricsFile) -> Evaluation:
        assert self.eval_data is not None
        evaluation = evaluate(self.model, self.eval_data, self.device)
        done = self.position.step / self.per_epoch
        metrics.write({"step": self.position.step, "epoch": done, **evaluation.to_json()})
        self.watcher.say(
            f"epoch {epoch + 1}: accuracy {evaluation.accuracy:.4f}, loss {evaluation.loss:.4f} "
            f"on {evaluation.examples} examples"
        )
        return evaluation

    def save(self) -> Path:
        """Writes the resumable state of this moment."""
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        return save_state(self.settings.out / "steps", self.position, tensors, self.identity)

    def _leave(self) -> None:
        if self.settings.save_every:
            state = self.save()
            self.watcher.say(f"{state.name} is saved; the same command with --resume goes on from it")
        raise KeyboardInterrupt


class _Log:
    """Means over the steps since the last line of the metrics file."""

    def __init__(self, metrics: MetricsFile, every: int, start: Position) -> None:
        self._metrics, self._every = metrics, every
        self._start, self._losses = start, list[float]()

    def add(self, position: Position, loss: float, **values: float) -> None:
        self._losses.append(loss)
        if position.step % self._every:
            return
        seconds = position.seconds - self._start.seconds
        self._metrics.write(
            {
                "step": position.step,
                "loss": sum(self._losses) / len(self._losses),
                **values,
                "skipped_steps": position.skipped,
                "tokens_per_second": (position.tokens - self._start.tokens) / seconds,
                "examples_per_second": (position.examples - self._start.examples) / seconds,
                "seconds": position.seconds,
            }
        )
        self._start, self._losses = replace(position), []


@contextmanager
def _interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Holds the first Ctrl-C back until the step is done; a second one is not held back.

    In the middle of a step weights and optimizer would not fit together.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
