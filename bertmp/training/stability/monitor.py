"""The divergence monitor: decides what to do about a step from its facts, without a model.

A non-finite step is skipped, up to a number in a row; then the run is rolled back to the last good state
with a lower learning rate, up to a number of times; then it stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from statistics import median
from typing import Any, Literal

from bertmp.training.train_options import MonitorOptions

Kind = Literal["parameter", "input", "output", "gradient"]
ScaleStatus = Literal["can fall", "at minimum", "fixed"]
_FAULTS: dict[Kind, str] = {
    "parameter": "a weight of {} is not finite",
    "input": "the batch's {} are not finite",
    "output": "the output of {} is not finite",
    "gradient": "a gradient at {} is not finite",
}
KINDS = tuple(_FAULTS)

RECENT = 64
JUDGED_FROM = 16
FLOOR = 0.1
"""A loss spike is measured against the median of the `RECENT` last losses, once there are `JUDGED_FROM` of
them, but never against less than this share of the run's first median: a loss near zero may
well double."""


@dataclass(frozen=True)
class FaultSite:
    """Where a value was first not finite.

    Attributes:
        module: its name in the model; `loss` for the loss itself, a target's name for the input.
        kind: a parameter before the step, the batch, the module's output, or the gradient that reached
            or left it.
    """

    module: str
    kind: Kind

    def __str__(self) -> str:
        return _FAULTS[self.kind].format(self.module)


@dataclass(frozen=True)
class StepFacts:
    """Facts about a step, before its gradients are used.

    Attributes:
        loss: over all processes.
        finite: whether loss and gradients are.
        fault: where they first were not, as the replay found; None if unknown.
        scale_too_high: whether the gradients of the unscaled loss are finite.
        scale_status: whether the loss scale can fall, has reached its minimum, or does not move.
    """

    loss: float
    finite: bool = True
    fault: FaultSite | None = None
    scale_too_high: bool = False
    scale_status: ScaleStatus = "fixed"


class Action(Enum):
    """What to do about a step."""

    USE = "use"
    SKIP = "skip"
    ROLL_BACK = "go back"
    STOP = "stop"


@dataclass(frozen=True)
class Decision:
    """The decision on a step.

    Attributes:
        cause: why, in a clause; empty where the step is used.
        expected: whether a dynamic loss scale is just adapting, which is not a fault.
    """

    action: Action
    cause: str = ""
    expected: bool = False

    def event(self, facts: StepFacts, scale: float) -> dict[str, Any]:
        """The decision as a line of the metrics file; `scale` is the loss scale of the step."""
        return {
            "event": "explosion" if facts.finite else "non-finite",
            "module": facts.fault.module if facts.fault else None,
            "kind": facts.fault.kind if facts.fault else None,
            "loss_scale": scale,
            "expected": self.expected,
            "action": self.action.value,
            "cause": self.cause,
        }


@dataclass(frozen=True)
class MonitorState:
    """The state of the monitor, part of every resumable state.

    Attributes:
        skipped: faulty steps in a row.
        exploding: loss spikes in a row.
        rollbacks: how often the run was rolled back.
        rate_factor: current factor on the learning rate.
        losses: the most recent ones without spikes.
        first_median: of the run's first `JUDGED_FROM` losses, once there are so many.
    """

    skipped: int = 0
    exploding: int = 0
    rollbacks: int = 0
    rate_factor: float = 1.0
    losses: tuple[float, ...] = ()
    first_median: float | None = None

    @property
    def calm(self) -> bool:
        """Whether a state saved now is good to roll back to."""
        return not self.skipped and not self.exploding

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MonitorState:
        """The state that `dataclasses.asdict` gave."""
        return cls(**{**values, "losses": tuple(values["losses"])})


class DivergenceMonitor:
    """Decides about one step after the other.

    Args:
        state: of an earlier part of the run.
    """

    def __init__(self, settings: MonitorOptions, state: MonitorState | None = None) -> None:
        self.settings, self.state = settings, state or MonitorState()

    def observe(self, facts: StepFacts) -> Decision:
        """What to do about a step."""
        if facts.finite:
            return self._judge_loss(facts.loss)
        if facts.scale_too_high and facts.scale_status == "can fall":
            # The scale falls each time, so this ends by itself: at its minimum at the latest.
            return Decision(Action.SKIP, "the loss scale is too high", expected=True)
        cause = _cause(facts)
        broken = facts.fault is not None and facts.fault.kind == "parameter"
        if broken or (facts.scale_too_high and facts.scale_status == "at minimum"):
            return self._escalate(cause)  # skipping repairs neither weights nor a scale at its minimum
        self.state = replace(self.state, skipped=self.state.skipped + 1)
        if self.state.skipped < self.settings.max_consecutive_skips:
            return Decision(Action.SKIP, cause)
        return self._escalate(f"{self.state.skipped} steps in a row were not finite: {cause}")

    def observe_end(self, facts: StepFacts) -> Decision:
        """What to do if the run ends with unusable weights, which skipping does not repair."""
        return self._escalate(_cause(facts))

    def record_rollback(self) -> None:
        """Notes that the run was rolled back, and reduces the learning rate."""
        rollbacks = self.state.rollbacks + 1
        factor = self.state.rate_factor * self.settings.rollback_lr_factor
        self.state = replace(self.state, skipped=0, exploding=0, rollbacks=rollbacks, rate_factor=factor)

    def _escalate(self, cause: str) -> Decision:
        left = self.state.rollbacks < self.settings.max_rollbacks
        return Decision(Action.ROLL_BACK if left else Action.STOP, cause)

    def _judge_loss(self, loss: float) -> Decision:
        state = replace(self.state, skipped=0)
        limit = self._limit()
        if limit is not None and loss > limit:
            self.state = replace(state, exploding=state.exploding + 1)
            if self.state.exploding < self.settings.loss_spike_patience:
                return Decision(Action.USE)
            times = self.state.exploding
            return self._escalate(f"the loss spikes: above {limit:.4g} for {times} steps in a row")
        losses = (*state.losses, loss)[-RECENT:]
        first = state.first_median
        if first is None and len(losses) >= JUDGED_FROM:
            first = median(losses)
        self.state = replace(state, exploding=0, losses=losses, first_median=first)
        return Decision(Action.USE)

    def _limit(self) -> float | None:
        """The loss above which a step is a spike; None if there is nothing to compare with."""
        state, factor = self.state, self.settings.loss_spike_factor
        if state.first_median is None or not factor:
            return None
        usual = max(median(state.losses), FLOOR * state.first_median)
        return factor * usual if usual > 0 else None  # a loss that can be negative is not judged


def _cause(facts: StepFacts) -> str:
    if facts.fault is None:
        return "the norm of the gradients is not finite, though each of them is"
    if facts.scale_too_high:
        level = "has fallen to its minimum" if facts.scale_status == "at minimum" else "is fixed and too high"
        return f"the loss scale {level}: {facts.fault}"
    return str(facts.fault)
