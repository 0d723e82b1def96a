"""The training loop: forward, loss, scaled backward, clip, watch, step; logged, evaluated, saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bertmp.core.errors import TrainingStopped
from bertmp.core.progress import ProgressCallback
from bertmp.model.heads import Head
from bertmp.training.amp import PrecisionPolicy
from bertmp.training.checkpoints import CheckpointManager
from bertmp.training.distributed import DistributedContext
from bertmp.training.early_stopping import BestEvaluation
from bertmp.training.evaluate import Evaluation, evaluate
from bertmp.training.graceful_stop import graceful_stop
from bertmp.training.gradients import GradientAccumulator
from bertmp.training.metrics_log import MetricsLog, StepLog
from bertmp.training.objective import Objective
from bertmp.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from bertmp.training.stability.activation_ranges import Ranges, recording
from bertmp.training.stability.monitor import (
    Action,
    Decision,
    DivergenceMonitor,
    FaultSite,
    MonitorState,
    StepFacts,
    event,
)
from bertmp.training.stability.overflow_trace import broken_weights, diagnose_step, locate_nonfinite
from bertmp.training.state import Position, State, States
from bertmp.training.steps import RankBatch, StepDataset
from bertmp.training.tasks import TrainingData
from bertmp.training.tensorboard import event_files
from bertmp.training.train_options import TrainOptions


@dataclass
class Trainer:
    """One training run at work.

    Attributes:
        objective: the head and its loss, on the run's device.
        identity: what a resumable state must agree with.
        position: where the run stands.
        evaluation: the last one.
        ranges: each module's largest activation at the last evaluation, where the run ended with one.
        best: the best evaluation so far.
        on_best: takes the whole model whenever an evaluation is the best so far; every process calls it.
    """

    objective: Objective
    data: TrainingData
    eval_data: TrainingData | None
    settings: TrainOptions
    policy: PrecisionPolicy
    world: DistributedContext
    identity: Mapping[str, Any]
    progress: ProgressCallback
    position: Position = field(default_factory=Position)
    evaluation: Evaluation | None = None
    ranges: Ranges | None = None
    best: BestEvaluation = field(default_factory=BestEvaluation)
    on_best: Callable[[Head], None] = lambda head: None

    def __post_init__(self) -> None:
        settings, world = self.settings, self.world
        module = world.wrap(self.objective, self.policy)
        self.optimizer = world.arrange(make_optimizer(self.objective.head, settings))
        self.scaler = self.policy.scaler(world.grad_scaler)
        self.steps = StepDataset(
            self.data,
            settings.batch_size,
            settings.seed,
            settings.gradient_accumulation_steps,
            world.data_rank,
            world.data_size,
        )
        self.total = settings.steps or self.steps.per_epoch * settings.epochs
        self.gradients = GradientAccumulator(
            self.objective, module, self.steps, world, self.policy, settings.seed
        )
        self.watch = DivergenceMonitor(settings)
        self.keeper = CheckpointManager(settings, self.identity, self.total)
        self.metrics = MetricsLog(None)
        if world.is_main:
            self.metrics = MetricsLog(settings.out / "metrics.jsonl", event_files(settings.out))
        self.log = StepLog(self.metrics, settings.log_every, self.total, self.position)

    def restore(self, state: State) -> None:
        """Takes over a saved state."""
        self.position = state.position
        self.world.restore(self.objective, self.optimizer, state.tensors)
        self.scaler.load_state_dict(state.tensors["scaler"])
        evaluation = state.progress["evaluation"]
        self.evaluation = Evaluation(**evaluation) if evaluation else None
        self.best = BestEvaluation(**state.progress["best"])
        self.log.restart(self.position, state.progress["losses"])

    def resume(self, state: State) -> None:
        """Goes on from a state of an earlier process: what that one wrote after it is written anew."""
        self.restore(state)
        self.watch.memory = MonitorState.from_json(state.progress["watch"])
        self.metrics.keep(state.progress["metrics"])

    def train(self) -> Evaluation | None:
        """Trains to the end; returns the last evaluation.

        Errors: TrainingStopped where the overflow watch knows no other way. KeyboardInterrupt after the
        step at which Ctrl-C came; its state is saved where the run saves states.
        """
        if self.position.step == 0:
            self.metrics.keep(0)
        self.objective.train()
        self.progress("training", self.position.step, self.total)
        with graceful_stop() as interrupted:
            if self.world.is_main:
                self.keeper.drop_after(self.position.step)
            if self.position.step == 0:
                self._save()
            while not self._is_done():
                self._go_on(interrupted)
        if self.world.is_main:
            self.keeper.forget()
        return self.evaluation

    def _go_on(self, interrupted: Callable[[], bool]) -> None:
        """Trains to the end, or until the run has gone back to an earlier step."""
        for share in self.steps.load(self.position.step, self.total, self.settings.num_workers):
            if self.world.any(interrupted()):
                self._leave()
            if not self._step(share):
                return
            if self.eval_data is not None and self._evaluation_is_due():
                self._evaluate(self.eval_data)
            self._save()
            if self._gives_up():
                return

    def _step(self, share: RankBatch) -> bool:
        """One step; False where the run has gone back instead."""
        started = time.perf_counter()
        step = self.position.step
        rate = learning_rate(step, self.total, self.settings) * self.watch.memory.rate_factor
        set_learning_rate(self.optimizer, rate)
        tally = self.gradients.tally(share)
        loss = self.gradients.accumulate(share, tally, step, self.scaler.scale)
        self.scaler.unscale(self.optimizer)
        norm = self.world.clip(self.objective, self.settings.max_grad_norm or math.inf)
        finite = math.isfinite(norm) and math.isfinite(loss)
        scale = self.scaler.value
        facts = StepFacts(loss)
        if not finite:
            facts = diagnose_step(self.gradients, share, tally, step, loss, self.scaler)
        action = self.watch.observe(facts)
        self._report(action, facts, scale)
        if action.do in (Action.GO_BACK, Action.STOP):
            self._go_back(action)
            return False
        if action.do is Action.USE:
            self.scaler.step(self.optimizer)
        else:
            self.scaler.skip()
        self.world.clear_gradients(self.objective, self.optimizer)
        self.position = Position(
            step + 1,
            self.position.skipped + (not finite),
            self.position.seconds + time.perf_counter() - started,
            self.position.examples + share.examples,
            self.position.tokens + tally.tokens,
        )
        epoch = (step + 1) / self.steps.per_epoch
        self.log.add(self.position, loss, epoch=epoch, learning_rate=rate, loss_scale=scale, grad_norm=norm)
        speed = self.position.examples / self.position.seconds
        self.progress(f"training: loss {loss:.4f}, {speed:.1f} examples/s", step + 1, self.total)
        return True

    def _report(self, action: Decision, facts: StepFacts, scale: float) -> None:
        if action.cause:
            self._note(**event(action, facts, scale))
        if action.do is Action.SKIP:
            where = f" at {facts.culprit.module}" if action.expected and facts.culprit else ""
            self.progress(f"step {self.position.step + 1}: {action.cause}{where}; the step is left out")

    def _note(self, **values: Any) -> None:
        """An event of the step at hand, in the metrics file."""
        self.metrics.write({"step": self.position.step + 1, **values})

    def _go_back(self, action: Decision) -> None:
        """Takes over the last good state with a lower learning rate; stops the run where there is none."""
        step = self.position.step + 1
        found = self.keeper.last_good(self.progress)
        if action.do is Action.STOP or found is None:
            good = f"the last good state is {found[0]}" if found else "no good state was saved before it"
            todo = f"{good}; check the data, or start anew with a lower --learning-rate or in bf16 or fp32"
            raise TrainingStopped(action.cause, f"step {step}", todo)
        self.watch.went_back()
        factor = self.watch.memory.rate_factor
        to_step = found[1].position.step
        self._note(event="rollback", to_step=to_step, rate_factor=factor, cause=action.cause)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler = self.policy.scaler(self.world.grad_scaler)
        self.restore(found[1])
        self.world.wait()
        if self.world.is_main:
            self.keeper.drop_after(self.position.step)
        self.progress(
            f"step {step}: {action.cause}; back to step {self.position.step}, "
            f"with {factor:g} times the learning rate"
        )

    def _is_done(self) -> bool:
        """Whether all steps are done; a last step that ruined the weights is one to go back from.

        Errors: TrainingStopped where every single step was left out.
        """
        if self.position.step < self.total and not self._gives_up():
            return False
        culprit = broken_weights(self.objective, self.world)
        if culprit is None and self.watch.memory.skipped:
            culprit = self._broken_answers()
        if culprit is None:
            self._require_progress()
            return True
        facts = StepFacts(math.nan, finite=False, culprit=culprit)
        action = self.watch.refuse(facts)
        self._report(action, facts, self.scaler.value)
        self._go_back(action)
        return False

    def _broken_answers(self) -> FaultSite | None:
        """Whether finite weights answer even the first step's texts with numbers that are not.

        A run that ends with steps left out met bad texts there, or has exploded.
        """
        share = self.steps[0]
        return locate_nonfinite(self.gradients, share, self.gradients.tally(share), 0, lambda loss: loss)

    def _require_progress(self) -> None:
        if self.position.skipped >= self.position.step:
            raise TrainingStopped(
                "every step was left out: nothing was learnt",
                f"step {self.position.step}",
                "lower a fixed --loss-scale, raise --steps, or train in bf16 or fp32",
            )

    def _evaluation_is_due(self) -> bool:
        step = self.position.step
        return step == self.total or step % (self.settings.eval_every or self.steps.per_epoch) == 0

    def _evaluate(self, data: TrainingData) -> None:
        head = self.world.whole(self.objective.head)
        with recording(head, self.position.step == self.total) as self.ranges:
            self.evaluation = evaluate(head, data, self.world)
        epoch = self.position.step / self.steps.per_epoch
        self.metrics.write({"step": self.position.step, "epoch": epoch, **self.evaluation.to_json()})
        self.progress(f"epoch {epoch:.2f}: {self.evaluation.describe()}")
        self.best = self.best.after(self.evaluation, self.position.step)
        if self.best.is_new(self.position.step):
            self.on_best(head)
        if self._gives_up():
            self.progress(f"no better evaluation since step {self.best.step}: the run ends here")

    def _gives_up(self) -> bool:
        """Whether the last `patience` evaluations were no better than the one before them."""
        return 0 < self.settings.patience <= self.best.waited

    def _save(self) -> None:
        """Writes the state of this moment where one is due."""
        states = self.keeper.due(self.position.step)
        if states is not None:
            self._save_to(states)

    def _save_to(self, states: States) -> None:
        tensors = self.world.collect(self.objective, self.optimizer)
        tensors["scaler"] = self.scaler.state_dict()
        progress = {
            "watch": self.watch.memory.to_json(),
            "metrics": self.metrics.lines,
            "losses": self.log.losses,
            "evaluation": asdict(self.evaluation) if self.evaluation else None,
            "best": asdict(self.best),
        }
        state = State(self.position, progress, tensors, good=self.watch.memory.calm)
        if self.world.is_main:
            self.keeper.save(states, state, self.progress)

    def _leave(self) -> None:
        if self.settings.save_every:
            self._save_to(self.keeper.states)
            self.progress(
                f"step {self.position.step} is saved; the same command with --resume goes on from it"
            )
        else:
            self.progress(f"step {self.position.step} is not saved: --save-every N keeps states to resume")
        raise KeyboardInterrupt
