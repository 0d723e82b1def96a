"""How large each tensor of a graph becomes on real text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Ranges:
    """The largest magnitude of each tensor.

    Attributes:
        largest: tensor name → largest absolute value, infinite where one overflowed even in FP32.
        source: `calibration` where the graph was run on texts, `training` where training recorded them.
        file: the file of texts or of recorded ranges.
        sha256: of that file.
        texts: how many texts were run; 0 for `training`.
    """

    largest: Mapping[str, float]
    source: Literal["calibration", "training"]
    file: str
    sha256: str
    texts: int
