"""Which states a run saves and when: for another process to resume, and for this one to go back to."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bertmp.training.stability.overflow_trace import all_finite
from bertmp.training.state import State, States
from bertmp.training.train_options import TrainOptions

MOST, FEWEST_STEPS = 4, 500


class CheckpointManager:
    """A run's states.

    A run that saves states goes back to those. One that does not still needs something to go back to: it
    keeps one state in `last-good/`, written at most `MOST` times a run and `FEWEST_STEPS` or more apart, the
    first time at the start, and removed at the end. It costs the disk three times the FP32 weights.

    Args:
        identity: what a state must agree with to be resumed.
        total: steps of the run.

    Attributes:
        states: those that can be resumed, in `steps/`.
    """

    def __init__(self, settings: TrainOptions, identity: Mapping[str, Any], total: int) -> None:
        self.states = States(settings.out / "steps", settings.save_total_limit, identity)
        self._fallback = States(settings.out / "last-good", 1, {})
        self._every = settings.save_every
        self._goes_back = settings.max_rollbacks > 0
        self._fallback_every = max(FEWEST_STEPS, math.ceil(total / MOST))
        self._total = total

    def due(self, step: int) -> States | None:
        """Where the state after `step` steps is to be saved; None where it is not."""
        if step == 0 or not self._every:
            wanted = self._goes_back and step < self._total and step % self._fallback_every == 0
            return self._fallback if wanted else None
        return self.states if step % self._every == 0 else None

    @staticmethod
    def save(states: States, state: State, say: Callable[[str], None]) -> None:
        """Writes a state, unless it is one that nobody should go on from.

        Errors: InputError where the disk does not take it.
        """
        if all_finite(state.tensors):
            states.save(state)
        else:
            say(f"step {state.position.step}: weights or moments are not finite, no state is saved")

    def last_good(self, say: Callable[[str], None]) -> tuple[Path, State] | None:
        """The state to go back to and its folder; None where there is none."""
        return self.states.last_good(say) or self._fallback.last_good(say)

    def drop_after(self, step: int) -> None:
        """Removes the states of steps that are done anew, which would be taken for newer ones."""
        self.states.drop_after(step)

    def forget(self) -> None:
        """Removes what only a running run needs."""
        shutil.rmtree(self._fallback.folder, ignore_errors=True)
