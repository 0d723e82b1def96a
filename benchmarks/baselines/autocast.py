"""NVIDIA ModelOpt's AutoCast, with the two operators excluded that everybody keeps in FP32."""

from __future__ import annotations

import time
from typing import Any


def measure(source: str, target: str) -> dict[str, Any]:
    """Converts `source`; the time is from file to file, imports apart."""
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    started = time.perf_counter()
    graph = convert_to_mixed_precision(
        source,
        low_precision_type="fp16",
        op_types_to_exclude=["LayerNormalization", "Softmax"],
        keep_io_types=True,
    )
    onnx.save(graph, target)
    return {"seconds": time.perf_counter() - started}
