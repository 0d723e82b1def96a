"""Evaluation in FP32, the reference precision of every later stage; early stopping on its score."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch

from bertmp.data.batches import length_sorted_batches
from bertmp.model.heads import Head
from bertmp.training.distributed import DistributedContext
from bertmp.training.tasks import TrainingData

BATCH = 64
SCORES = ("f1", "accuracy", "pearson")


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on examples with known answers.

    Attributes:
        figures: name → value: `loss`, and what the head scores (`accuracy`, …).
        examples: how many there were.
    """

    figures: dict[str, float]
    examples: int

    @property
    def loss(self) -> float:
        return self.figures["loss"]

    @property
    def score(self) -> float:
        """What evaluations are ranked by, higher is better: the first of `SCORES` there is, else -loss."""
        return next((self.figures[name] for name in SCORES if name in self.figures), -self.loss)

    def to_json(self) -> dict[str, float]:
        return {
            **{f"eval_{name}": value for name, value in self.figures.items()},
            "eval_examples": self.examples,
        }

    def describe(self) -> str:
        """The figures in one line."""
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.figures.items())
        return f"{shown} on {self.examples} examples"


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


@torch.no_grad()
def evaluate(head: Head, data: TrainingData, context: DistributedContext) -> Evaluation:
    """Evaluates without dropout; the head is left in its mode. Random parts are those of epoch 0.

    Args:
        head: with its full weights, in every process; see `DistributedContext.full_head`.
        context: its processes split the examples and all get the same result.
    """
    training = head.training
    head.eval()
    sums: Counter[str] = Counter()
    own, processes = context.rank_and_size
    for rows in length_sorted_batches(data.lengths(0), BATCH)[own::processes]:
        sums.update(head.score(data.batch(rows, 0).to(context.device)))
    head.train(training)
    return Evaluation(head.summarise(context.sum_scores(sums)), len(data))
