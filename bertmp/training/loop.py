"""The training loop: forward, loss, scaled backward, clip, step; logged, evaluated, saved."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bertmp.errors import TrainingStopped
from bertmp.model.batch import Batch
from bertmp.training.amp import Policy
from bertmp.training.evaluate import Evaluation, evaluate
from bertmp.training.interrupt import interrupt_between_steps
from bertmp.training.metrics import MetricsFile, StepLog
from bertmp.training.objective import Objective
from bertmp.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from bertmp.training.parallel import World
from bertmp.training.settings import TrainSettings
from bertmp.training.state import Position, save_state
from bertmp.training.steps import Share, Steps
from bertmp.training.tasks import TrainingData


class Watcher(Protocol):
    """Whoever shows the progress."""

    def step(self, step: int, loss: float, rate: float) -> None:
        """After each step: steps done, its loss, examples per second so far."""

    def say(self, text: str) -> None:
        """A line for the log."""


@dataclass
class Trainer:
    """One training run at work.

    Attributes:
        objective: the head and its loss, on the run's device.
        identity: what a resumable state must agree with.
        position: where the run stands.
    """

    objective: Objective
    data: TrainingData
    eval_data: TrainingData | None
    settings: TrainSettings
    policy: Policy
    world: World
    identity: Mapping[str, Any]
    watcher: Watcher
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        settings = self.settings
        self.module = self.world.wrap(self.objective)
        self.optimizer = make_optimizer(self.objective.head, settings)
        self.scaler = self.policy.scaler()
        self.steps = Steps(
            self.data,
            settings.batch_size,
            settings.seed,
            settings.accumulate,
            self.world.data_rank,
            self.world.data_size,
        )
        self.total = settings.steps or self.steps.per_epoch * settings.epochs
        self._skipped_in_a_row = 0

    def restore(self, position: Position, tensors: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        self.position = position
        self.world.restore(self.objective, self.optimizer, tensors)
        self.scaler.load_state_dict(tensors["scaler"])

    def train(self) -> Evaluation | None:
        """Trains to the end; returns the last evaluation.

        Errors: TrainingStopped where too many steps in a row were not finite. KeyboardInterrupt after
        the step at which Ctrl-C came; its state is saved where the run saves states.
        """
        metrics = MetricsFile(self.settings.out / "metrics.jsonl", self.position.step)
        log = StepLog(metrics, self.settings.log_every, self.position)
        evaluation = None
        self.module.train()
        shares = self.steps.load(self.position.step, self.total, self.settings.workers)
        with interrupt_between_steps() as interrupted:
            for share in shares:
                self._step(share, log)
                if self.eval_data is not None and self._evaluation_is_due():
                    evaluation = self._evaluate(self.eval_data, metrics)
                if interrupted():
                    self._leave()
        return evaluation

    def _step(self, share: Share, log: StepLog) -> None:
        started = time.perf_counter()
        step = self.position.step
        rate = learning_rate(step, self.total, self.settings)
        set_learning_rate(self.optimizer, rate)
        loss, tokens = self._accumulate(share)
        self.scaler.unscale(self.optimizer)
        limit = self.settings.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), limit))
        finite = math.isfinite(norm)
        scale = self.scaler.value
        self.scaler.step(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.position = Position(
            step + 1,
            self.position.skipped + (not finite),
            self.position.seconds + time.perf_counter() - started,
            self.position.examples + share.examples,
            self.position.tokens + tokens,
        )
        epoch = (step + 1) / self.steps.per_epoch
        log.add(self.position, loss, epoch=epoch, learning_rate=rate, loss_scale=scale, grad_norm=norm)
        self.watcher.step(step + 1, loss, self.position.examples / self.position.seconds)
        self._watch(finite)
        if self.settings.save_every and (step + 1) % self.settings.save_every == 0:
            self.save()

    def _accumulate(self, share: Share) -> tuple[float, int]:
        """Gradients of one step's loss; returns the loss and the tokens, over all processes."""
        parts = len(self.objective.head.losses)
        batches = [batch.to(self.world.device) if batch else None for batch in share.micro_batches]
        tally = torch.zeros(parts + 1, dtype=torch.float64)
        for batch in batches:
            if batch is not None:
                tally += torch.tensor([*self.objective.counts(batch), batch.tokens], dtype=torch.float64)
        tally = self.world.sum(tally)
        counts = tally[:-1].clamp_min(1.0).float().to(self.world.device)
        sums = torch.zeros(parts, device=self.world.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with self.world.accumulating(self.module, last):
                sums += self._backward(batch, counts, number)
        total = self.world.sum(sums)
        return float((total / counts).sum()), int(tally[-1])

    def _backward(self, batch: Batch | None, counts: Tensor, number: int) -> Tensor:
        """One micro-batch's gradients; returns its summed losses."""
        # Dropout depends on seed, step and place alone, so that a resumed run draws what the first one drew.
        seed = (self.settings.seed * 1_000_003 + self.position.step) * 1009 + number
        torch.manual_seed(seed * 257 + self.world.data_rank)
        weight = 1.0
        if batch is None:
            # A short batch left this process nothing: it still takes part in the exchange, with no weight.
            batch, weight = self.steps.data.batch(self.steps.any_row, 0).to(self.world.device), 0.0
        with self.policy.autocast():
            sums = self.module(batch)
        self.scaler.backward((sums / counts).sum() * (weight * self.world.data_size))
        return sums.detach() * weight

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

    def _evaluation_is_due(self) -> bool:
        step = self.position.step
        return step == self.total or step % (self.settings.eval_every or self.steps.per_epoch) == 0

    def _evaluate(self, data: TrainingData, metrics: MetricsFile) -> Evaluation:
        evaluation = evaluate(self.objective.head, data, self.world.device)
        epoch = self.position.step / self.steps.per_epoch
        metrics.write({"step": self.position.step, "epoch": epoch, **evaluation.to_json()})
        self.watcher.say(f"epoch {epoch:.2f}: {evaluation.describe()}")
        return evaluation

    def save(self) -> Path:
        """Writes the resumable state of this moment."""
        tensors = self.world.collect(self.objective, self.optimizer)
        tensors["scaler"] = self.scaler.state_dict()
        return save_state(self.settings.out / "steps", self.position, tensors, self.identity)

    def _leave(self) -> None:
        if self.settings.save_every:
            state = self.save()
            self.watcher.say(f"{state.name} is saved; the same command with --resume goes on from it")
        raise KeyboardInterrupt
