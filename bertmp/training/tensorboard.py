"""`RUN/tensorboard/`: the numbers of `metrics.jsonl` as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventFiles:
    """Writes scalars by step.

    The file is opened at the first number, and TensorBoard is told to forget what earlier files have from
    that step on: a resumed run writes it anew.
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
