"""onnxconverter-common's FP16 conversion with its own list of operators to keep in FP32."""

from __future__ import annotations

import time
from typing import Any


def measure(source: str, target: str) -> dict[str, Any]:
    """Converts `source`; the time is from file to file, imports apart."""
    import onnx
    from onnxconverter_common.float16 import convert_float_to_float16

    started = time.perf_counter()
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
    return {"seconds": time.perf_counter() - started}
