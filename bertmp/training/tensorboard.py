"""`RUN/tensorboard/`: the numbers of `metrics.jsonl` as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class EventFiles:
    """Writes scalars by step.

    Args:
        folder: where the event files go.
        purge_from: a resumed run's first step: TensorBoard forgets what an earlier file has from there on.
    """

    def __init__(self, folder: Path, purge_from: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_from)

    def write(self, values: Mapping[str, Any]) -> None:
        """One logged step: every number but the step becomes a scalar under `train/`, `eval/` or `speed/`."""
        step = int(values["step"])
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._writer.add_scalar(tag(name), value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


def tag(name: str) -> str:
    """A metric's name as TensorBoard groups it: `eval_loss` → `eval/loss`, `loss` → `train/loss`."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if name.endswith("_per_second"):
        return f"speed/{name}"
    return f"train/{name}"


def available() -> bool:
    """Whether the `tensorboard` package, which knows the format, is installed."""
    return find_spec("tensorboard") is not None
