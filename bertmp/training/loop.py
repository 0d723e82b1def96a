"""The training loop: forward, scaled backward, clip, monitor, step; with logs, evaluations and states."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from bertmp.core.errors import TrainingStopped
from bertmp.model.heads import Head
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.checkpoints import CheckpointManager, Position, State, States
from bertmp.training.cpu_tuning import tune_for_cpu
from bertmp.training.distributed import DistributedContext
from bertmp.training.distributed.sharding import Objective, clip_gradients, full_state, load_full_state
from bertmp.training.metrics import BestEvaluation, Evaluation, MetricsLog, evaluate
from bertmp.training.stability.activation_ranges import Ranges, recording
from bertmp.training.stability.monitor import Action, Decision, DivergenceMonitor, MonitorState, StepFacts
from bertmp.training.stability.overflow_trace import (
    all_finite,
    diagnose_step,
    locate_nonfinite,
    locate_nonfinite_weight,
)
from bertmp.training.step import (
    GradientAccumulator,
    RankBatch,
    StepDataset,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from bertmp.training.tasks import TrainingData
from bertmp.training.train_options import TrainOptions


@dataclass
class Trainer:
    """One training run.

    Attributes:
        objective: the head and its loss, on the run's device.
        identity: what a resumed state must match; see `run_identity`.
        position: where the run stands.
        evaluation: the last one.
        ranges: each module's largest activation in the evaluation after the last step, if there was one.
        best: the best evaluation so far.
        on_best: called in every process with the full model after each evaluation that is the best so far.
    """

    objective: Objective
    data: TrainingData
    eval_data: TrainingData | None
    settings: TrainOptions
    policy: PrecisionPolicy
    context: DistributedContext
    identity: Mapping[str, Any]
    position: Position = field(default_factory=Position)
    evaluation: Evaluation | None = None
    ranges: Ranges | None = None
    best: BestEvaluation = field(default_factory=BestEvaluation)
    on_best: Callable[[Head], None] = lambda head: None

    def __post_init__(self) -> None:
        settings, context = self.settings, self.context
        self.progress = settings.progress
        if context.device.type == "cpu":
            tune_for_cpu(self.objective.head)
        module = context.wrap(self.objective, self.policy)
        self.optimizer = make_optimizer(self.objective.head, settings)
        self.scaler = self.policy.scaler(context.grad_scaler)
        self.steps = StepDataset(self.data, settings, context.data_rank, context.data_size)
        self.total = settings.steps or self.steps.per_epoch * settings.epochs
        self.gradients = GradientAccumulator(self.objective, module, self.steps, context, self.policy)
        self.monitor = DivergenceMonitor(settings)
        self.checkpoints = CheckpointManager(settings, self.identity, self.total)
        self.metrics = MetricsLog(settings.out if context.is_main else None, settings.log_every, self.total)

    def restore(self, state: State) -> None:
        """Loads a saved state."""
        self.position = state.position
        load_full_state(self.objective.head, self.optimizer, state.tensors)
        self.scaler.load_state_dict(state.tensors["scaler"])
        evaluation = state.progress["evaluation"]
        self.evaluation = Evaluation(**evaluation) if evaluation else None
        self.best = BestEvaluation(**state.progress["best"])
        self.metrics.restart_steps(self.position, state.progress["losses"])

    def resume(self, state: State) -> None:
        """Continues from a state of an earlier process; drops the metrics logged after that state."""
        self.restore(state)
        self.monitor.state = MonitorState.from_json(state.progress["watch"])
        self.metrics.truncate(state.progress["metrics"])

    def train(self) -> Evaluation | None:
        """Trains to the end; returns the last evaluation.

        Raises:
            TrainingStopped: the divergence monitor stops the run.
            KeyboardInterrupt: Ctrl-C; raised after the step, whose state is saved if the run saves states.
        """
        if self.position.step == 0:
            self.metrics.truncate(0)
        self.objective.train()
        self.progress("training", self.position.step, self.total)
        with graceful_stop() as stop_requested:
            if self.context.is_main:
                self.checkpoints.states.drop_after(self.position.step)
            if self.position.step == 0:
                self._save(self.checkpoints.due(0))
            while not self._is_done():
                self._run_until_rollback(stop_requested)
        if self.context.is_main:
            self.checkpoints.forget()
        return self.evaluation

    def _run_until_rollback(self, stop_requested: Callable[[], bool]) -> None:
        """Trains to the end, or until the run is rolled back to an earlier step."""
        for rank_batch in self.steps.load(self.position.step, self.total, self.settings.num_workers):
            if self.context.any(stop_requested()):
                self._stop_early()
            if not self._step(rank_batch):
                return
            step, every = self.position.step, self.settings.eval_every or self.steps.per_epoch
            if self.eval_data is not None and (step == self.total or step % every == 0):
                self._evaluate(self.eval_data)
            self._save(self.checkpoints.due(step))
            if self._early_stop():
                return

    def _step(self, rank_batch: RankBatch) -> bool:
        """One step; False if the run was rolled back instead."""
        started = time.perf_counter()
        step = self.position.step
        rate = learning_rate(step, self.total, self.settings) * self.monitor.state.rate_factor
        set_learning_rate(self.optimizer, rate)
        normalizer = self.gradients.normalizer(rank_batch)
        loss = self.gradients.accumulate(rank_batch, normalizer, self.scaler.scale)
        self.scaler.unscale(self.optimizer)
        norm = clip_gradients(self.objective, self.settings.max_grad_norm or math.inf)
        finite = math.isfinite(norm) and math.isfinite(loss)
        scale = self.scaler.value
        facts = StepFacts(loss)
        if not finite:
            facts = diagnose_step(self.gradients, rank_batch, normalizer, loss, self.scaler)
        decision = self.monitor.observe(facts)
        self._log_decision(decision, facts, scale)
        if decision.action in (Action.ROLL_BACK, Action.STOP):
            self._roll_back(decision)
            return False
        if decision.action is Action.USE:
            self.scaler.step(self.optimizer)
        else:
            self.scaler.skip()
        self.context.zero_grad(self.objective, self.optimizer)
        self.position = Position(
            step + 1,
            self.position.skipped + (not finite),
            self.position.seconds + time.perf_counter() - started,
            self.position.examples + rank_batch.examples,
            self.position.tokens + normalizer.tokens,
        )
        epoch = (step + 1) / self.steps.per_epoch
        values = {"epoch": epoch, "learning_rate": rate, "loss_scale": scale, "grad_norm": norm}
        self.metrics.add_step(self.position, loss, values)
        speed = self.position.examples / self.position.seconds
        self.progress(f"training: loss {loss:.4f}, {speed:.1f} examples/s", step + 1, self.total)
        return True

    def _log_decision(self, decision: Decision, facts: StepFacts, scale: float) -> None:
        if decision.cause:
            self.metrics.write({"step": self.position.step + 1, **decision.event(facts, scale)})
        if decision.action is Action.SKIP:
            where = f" at {facts.fault.module}" if decision.expected and facts.fault else ""
            self.progress(f"step {self.position.step + 1}: {decision.cause}{where}; the step is skipped")

    def _roll_back(self, decision: Decision) -> None:
        """Loads the last good state and reduces the learning rate.

        Raises:
            TrainingStopped: the monitor stops the run, or there is no good state.
        """
        step = self.position.step + 1
        found = self.checkpoints.last_good(self.progress)
        if decision.action is Action.STOP or found is None:
            good = f"the last good state is {found[0]}" if found else "no good state was saved before it"
            todo = f"{good}; check the data, or start again with a lower --learning-rate or in bf16 or fp32"
            raise TrainingStopped(decision.cause, f"step {step}", todo)
        self.monitor.record_rollback()
        factor = self.monitor.state.rate_factor
        to_step = found[1].position.step
        event = {"event": "rollback", "to_step": to_step, "rate_factor": factor, "cause": decision.cause}
        self.metrics.write({"step": step, **event})
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler = self.policy.scaler(self.context.grad_scaler)
        self.restore(found[1])
        self.context.barrier()
        if self.context.is_main:
            self.checkpoints.states.drop_after(self.position.step)
        back = f"back to step {to_step}, with {factor:g} times the learning rate"
        self.progress(f"step {step}: {decision.cause}; {back}")

    def _is_done(self) -> bool:
        """Whether all steps are done; a last step that ruined the weights leads to a rollback.

        Raises:
            TrainingStopped: every step was skipped.
        """
        if self.position.step < self.total and not self._early_stop():
            return False
        fault = locate_nonfinite_weight(self.objective, self.context)
        if fault is None and self.monitor.state.skipped:
            # A run that ends with skipped steps had bad examples there, or has diverged: then finite weights
            # give non-finite outputs for the first step's examples too.
            rank_batch = self.steps[0]
            fault = locate_nonfinite(self.gradients, rank_batch, self.gradients.normalizer(rank_batch))
        if fault is None:
            if self.position.skipped >= self.position.step:
                todo = "reduce a fixed --loss-scale, increase --steps, or train in bf16 or fp32"
                where = f"step {self.position.step}"
                raise TrainingStopped("every step was skipped: nothing was learned", where, todo)
            return True
        facts = StepFacts(math.nan, finite=False, fault=fault)
        decision = self.monitor.observe_end(facts)
        self._log_decision(decision, facts, self.scaler.value)
        self._roll_back(decision)
        return False

    def _evaluate(self, data: TrainingData) -> None:
        head = self.context.full_head(self.objective.head)
        with recording(head) if self.position.step == self.total else nullcontext() as self.ranges:
            self.evaluation = evaluate(head, data, self.context)
        epoch = self.position.step / self.steps.per_epoch
        self.metrics.write({"step": self.position.step, "epoch": epoch, **self.evaluation.to_json()})
        self.progress(f"epoch {epoch:.2f}: {self.evaluation.describe()}")
        self.best = self.best.after(self.evaluation, self.position.step)
        if self.best.is_new(self.position.step):
            self.on_best(head)
        if self._early_stop():
            self.progress(f"no better evaluation since step {self.best.step}: the run ends here")

    def _early_stop(self) -> bool:
        """Whether the last `patience` evaluations were no better than the one before them."""
        return 0 < self.settings.patience <= self.best.waited

    def _save(self, states: States | None) -> None:
        """Saves a state there, unless none is due or its tensors are not finite."""
        if states is None:
            return
        tensors = full_state(self.objective.head, self.optimizer, self.context.is_main)
        tensors["scaler"] = self.scaler.state_dict()
        progress = {
            "watch": asdict(self.monitor.state),
            "metrics": self.metrics.lines,
            "losses": self.metrics.losses,
            "evaluation": asdict(self.evaluation) if self.evaluation else None,
            "best": asdict(self.best),
        }
        if not self.context.is_main:
            return
        if all_finite(tensors):
            states.save(State(self.position, progress, tensors, good=self.monitor.state.calm))
        else:
            self.progress(f"step {self.position.step}: weights or moments are not finite, no state is saved")

    def _stop_early(self) -> None:
        what = "is not saved: --save-every N keeps states to resume"
        if self.settings.save_every:
            self._save(self.checkpoints.states)
            what = "is saved; the same command with --resume goes on from it"
        self.progress(f"step {self.position.step} {what}")
        raise KeyboardInterrupt


@contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C or SIGTERM came; a second one interrupts at once.

    In the middle of a step, weights and optimizer state would not match. Batch systems send SIGTERM before
    they reclaim the machine.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
