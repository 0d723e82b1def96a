"""The best evaluation so far: which it is, its checkpoint, and when to stop waiting for a better one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bertmp.training.evaluate import Evaluation


@dataclass(frozen=True)
class BestEvaluation:
    """The state of the search; pure data, part of every resumable state.

    Attributes:
        score: the best evaluation's, where higher is better; None before the first one.
        step: when it was.
        waited: evaluations since then.
    """

    score: float | None = None
    step: int = 0
    waited: int = 0

    def after(self, evaluation: Evaluation, step: int) -> BestEvaluation:
        """The state after one more evaluation; only a strictly better one counts."""
        score = evaluation.score
        if self.score is None or score > self.score:
            return BestEvaluation(score, step, 0)
        return replace(self, waited=self.waited + 1)

    def is_new(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is the best one."""
        return self.score is not None and self.step == step
