"""What a user may say about precision: the options that `export` and `convert` share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.export.precision.plan import Target

HEADROOM = 4.0


@dataclass(frozen=True)
class PrecisionSettings:
    """The options that `export` and `convert` share.

    Attributes:
        keep_fp32: patterns of nodes that stay FP32.
        allow_fp16: patterns of nodes that may run low although they normalise or are a softmax.
        to: the low type.
        headroom: how many times a tensor in the low type must fit into the type's range.
        calibration: a file of texts to measure ranges and errors on.
        max_error: the largest change of an output value on these texts.
        plan: a plan to apply as it is, in place of making one.
    """

    keep_fp32: Sequence[str] = ()
    allow_fp16: Sequence[str] = ()
    to: Target = "fp16"
    headroom: float = HEADROOM
    calibration: Path | None = None
    max_error: float | None = None
    plan: Path | None = None

    def check(self) -> None:
        """Errors: InputError for options that contradict each other or make no sense."""
        if self.max_error is not None and not (self.max_error >= 0 and math.isfinite(self.max_error)):
            raise InputError(f"an error of {self.max_error:g} is no budget", "--max-error", "use 0 or more")
        if self.max_error is not None and self.calibration is None:
            raise InputError(
                "an error is measured on texts, and there are none", "--max-error", "add --calibration FILE"
            )
        if self.plan is None:
            return
        others = replace(self, plan=None, calibration=None)
        for name, value in vars(others).items():
            if value != getattr(PrecisionSettings, name):
                raise InputError(
                    "the plan has decided that already",
                    f"--{name.replace('_', '-')}",
                    "leave it out, or leave out --plan",
                )

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return {**plain, "keep_fp32": list(self.keep_fp32), "allow_fp16": list(self.allow_fp16)}
