"""Conversion as a user of this project does it: `bertmp.convert`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def measure(
    source: str, target: str, calibration: str = "", max_error: float | None = None
) -> dict[str, Any]:
    """Converts `source`; the time is from file to file, without imports.

    Args:
        calibration: a file of texts; the tokenizer lies beside the graph.
    """
    from bertmp import convert

    options: dict[str, Any] = {}
    if calibration:
        options["calibration"] = Path(calibration)
    if max_error is not None:
        options["max_error"] = max_error
    started = time.perf_counter()
    convert(Path(source), Path(target), **options)
    return {"seconds": time.perf_counter() - started}
