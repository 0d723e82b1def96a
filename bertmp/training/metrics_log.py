"""`metrics.jsonl`, one JSON object per logged step, and the same numbers as TensorBoard event files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertmp.core.io import write_text, writing_to
from bertmp.training.checkpoints import Position

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """Appends lines to `metrics.jsonl`.

    Args:
        path: the file; None for a process that writes nothing.
        events: takes every line as well.

    Attributes:
        lines: how many it has.
    """

    def __init__(self, path: Path | None, events: EventFiles | None = None) -> None:
        self._path, self._events, self.lines = path, events, 0

    def truncate(self, lines: int) -> None:
        """Drops all but the first lines: a resumed run writes the others again."""
        self.lines = lines
        if self._path is not None:
            kept = read_metrics(self._path)[:lines] if self._path.is_file() else []
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line; a number that is not finite is written as null, which JSON has."""
        self.lines += 1
        if self._events is not None:
            self._events.write(values)
        if self._path is not None:
            line = {key: _finite(value) for key, value in values.items()}
            with writing_to(self._path), self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; an incomplete last line, as after a crash, is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class StepLog:
    """Means over the steps since the last line of the metrics file.

    Args:
        every: steps a line.
        total: steps of the run; the last one has a line of its own.
        start: where the run stands now.

    Attributes:
        losses: those of the steps since the last line; the mean leaves out what is not finite.
    """

    def __init__(self, metrics: MetricsLog, every: int, total: int, start: Position) -> None:
        self._metrics, self._every, self._total, self._start = metrics, every, total, start
        self.losses: list[float] = []

    def restart(self, start: Position, losses: Sequence[float]) -> None:
        """Goes on from a saved state with the losses that were waiting there."""
        self._start, self.losses = start, list(losses)

    def add(self, position: Position, loss: float, **values: float) -> None:
        """Takes one step's loss, and writes a line where one is due."""
        if math.isfinite(loss):
            self.losses.append(loss)
        if position.step % self._every and position.step != self._total:
            return
        seconds = position.seconds - self._start.seconds
        self._metrics.write(
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


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return float(f"{value:.8g}")
    return value


class EventFiles:
    """Writes scalars by step.

    The file is opened at the first number; `purge_step` drops what earlier files have from that step on,
    which a resumed run writes again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, values: Mapping[str, Any]) -> None:
        """One logged step: every number but the step becomes a scalar under `train/`, `eval/` or `speed/`."""
        step = int(values["step"])
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._writer.add_scalar(tag(name), value, step)
        self._writer.flush()


def event_files(run: Path) -> EventFiles | None:
    """The event files of a run; None where the `tensorboard` package, which knows the format, is missing."""
    return EventFiles(run / "tensorboard") if find_spec("tensorboard") is not None else None


def tag(name: str) -> str:
    """A metric's name as TensorBoard groups it: `eval_loss` → `eval/loss`, `loss` → `train/loss`."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if name.endswith("_per_second"):
        return f"speed/{name}"
    return f"train/{name}"
