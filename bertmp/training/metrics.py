"""`metrics.jsonl`: one JSON object a logged step, flushed as it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertmp.files import write_text, writing_to
from bertmp.training.state import Position


class MetricsFile:
    """Appends lines to `metrics.jsonl`.

    Args:
        path: the file.
        keep_to: lines of later steps are dropped first, since a resumed run writes them anew.
    """

    def __init__(self, path: Path, keep_to: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= keep_to] if path.is_file() else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path = path

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line; a number that is not finite is written as null, which JSON has."""
        line = {key: _finite(value) for key, value in values.items()}
        with writing_to(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a crash is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class StepLog:
    """Means over the steps since the last line of the metrics file.

    Args:
        every: steps a line.
        start: where the run stands now.
    """

    def __init__(self, metrics: MetricsFile, every: int, start: Position) -> None:
        self._metrics, self._every, self._start = metrics, every, start
        self._losses: list[float] = []

    def add(self, position: Position, loss: float, **values: float) -> None:
        """Takes one step's loss, and writes a line where one is due."""
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
        self._start, self._losses = position, []


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return float(f"{value:.8g}")
    return value
