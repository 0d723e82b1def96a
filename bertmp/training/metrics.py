"""What a run reports: `metrics.jsonl`, the same numbers as TensorBoard event files, and evaluations.

Evaluations are in FP32, the reference precision of every later stage; early stopping goes by their score.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bertmp.core.io import write_text, writing_to
from bertmp.data.batches import length_sorted_batches
from bertmp.model.heads import Head
from bertmp.training.checkpoints import Position
from bertmp.training.distributed import DistributedContext
from bertmp.training.tasks import TrainingData


class MetricsLog:
    """Appends lines to `metrics.jsonl`, and their numbers to TensorBoard's event files.

    There are no event files where the `tensorboard` package, which knows the format, is missing.

    Args:
        run: the run's folder; None for a process that writes nothing.
        every: steps a line.
        total: steps of the run; the last one has a line of its own.

    Attributes:
        lines: how many it has.
        losses: those of the steps since the last line; the mean leaves out what is not finite.
    """

    def __init__(self, run: Path | None, every: int, total: int) -> None:
        self._run, self._every, self._total, self._start = run, every, total, Position()
        self.lines, self.losses = 0, list[float]()
        self._events: Any = None
        self._has_events = find_spec("tensorboard") is not None

    def truncate(self, lines: int) -> None:
        """Drops all but the first lines: a resumed run writes the others again."""
        self.lines = lines
        if self._run is not None:
            path = self._run / "metrics.jsonl"
            kept = read_metrics(path)[:lines] if path.is_file() else []
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line; a number that is not finite is written as null, which JSON has."""
        self.lines += 1
        if self._run is None:
            return
        if self._has_events:
            self._add_scalars(self._run / "tensorboard", values)
        line = {key: _finite(value) for key, value in values.items()}
        path = self._run / "metrics.jsonl"
        with writing_to(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")

    def restart_steps(self, start: Position, losses: Sequence[float]) -> None:
        """Goes on from a saved state with the losses that were waiting there."""
        self._start, self.losses = start, list(losses)

    def add_step(self, position: Position, loss: float, values: Mapping[str, float]) -> None:
        """Takes one step's loss, and writes a line where one is due."""
        if math.isfinite(loss):
            self.losses.append(loss)
        if position.step % self._every and position.step != self._total:
            return
        seconds = position.seconds - self._start.seconds
        self.write(
            {
                "step": position.step,
                "loss": sum(self.losses) / len(self.losses) if self.losses else math.nan,
                **values,
                "skipped_steps": position.skipped,
                "tokens_per_second": (position.tokens - self._start.tokens) / seconds,
                "examples_per_second": (position.examples - self._start.examples) / seconds,
                "seconds": position.seconds,
            }
        )
        self._start, self.losses = position, []

    def _add_scalars(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Every number but the step becomes a scalar under `train/`, `eval/` or `speed/`.

        The file is opened at the first number; `purge_step` drops what earlier files have from that step on,
        which a resumed run writes again.
        """
        step = int(values["step"])
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder), purge_step=step)
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._events.add_scalar(tag(name), value, step)
        self._events.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; an incomplete last line, as after a crash, is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _finite(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.8g}") if math.isfinite(value) else None


def tag(name: str) -> str:
    """A metric's name as TensorBoard groups it: `eval_loss` → `eval/loss`, `loss` → `train/loss`."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if name.endswith("_per_second"):
        return f"speed/{name}"
    return f"train/{name}"


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
        return {f"eval_{name}": value for name, value in [*self.figures.items(), ("examples", self.examples)]}

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
        if self.score is None or evaluation.score > self.score:
            return BestEvaluation(evaluation.score, step)
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
    total: Counter[str] = Counter()
    for part in context.gather(dict(sums)):
        total.update(part)
    return Evaluation(head.summarise(total), len(data))
