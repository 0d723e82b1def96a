"""Whether a graph loads where it would be used: ONNX Runtime without a warning, TensorRT-RTX's parser."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def measure(graph: str) -> dict[str, Any]:
    """`loads`, and where it is False the first complaint in `error`."""
    complaint = onnxruntime_complaint(Path(graph)) or tensorrt_complaint(Path(graph))
    complaint = complaint.replace(str(Path(graph).parent) + os.sep, "")
    return {"loads": not complaint, **({"error": complaint} if complaint else {})}


def onnxruntime_complaint(graph: Path) -> str:
    """The first warning or error of ONNX Runtime; empty where it loads in silence."""
    import onnxruntime

    def load() -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 2  # warnings
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    try:
        printed = _printed_by(load)
    except Exception as error:  # ONNX Runtime has a dozen types of its own
        return f"ONNX Runtime: {_first_line(str(error))}"
    return f"ONNX Runtime: {_first_line(printed)}" if printed.strip() else ""


def tensorrt_complaint(graph: Path) -> str:
    """The first error of TensorRT-RTX's parser; empty where it parses."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(graph)):
        return ""
    return f"TensorRT-RTX: {_first_line(parser.get_error(0).desc() if parser.num_errors else 'no reason')}"


def _printed_by(action: Callable[[], None]) -> str:
    """What an action writes to standard error, native code included."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            action()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode(errors="replace")


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "no message"
