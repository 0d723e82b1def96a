"""A converted graph against the FP32 graph in ONNX Runtime, on the same texts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.converters.graphs import INPUTS
from benchmarks.converters.texts import feeds


def answers(graph: Path, data: Path, stride: int, rounded: bool = False) -> np.ndarray:
    """Logits of all texts, FP32 `[texts, labels]`.

    Args:
        rounded: round every FP16 tensor, which ONNX Runtime's CPU provider leaves out between FP16 nodes.
    """
    session = _rounded_session(graph) if rounded else _session(graph)
    parts = [session.run(["logits"], feed)[0] for feed in feeds(graph.parent, data, stride, INPUTS)]
    return np.concatenate(parts).astype(np.float32)


def _session(graph: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings are what loads.py counts
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _rounded_session(graph: Path) -> Any:
    import onnx

    from bertmp.export.graph.ort_sessions import open_measuring_session
    from bertmp.export.graph.weights import split_weights
    from bertmp.export.precision.fp16_emulation import rounded

    return open_measuring_session(rounded(split_weights(onnx.load(graph))))


def measure(
    graph: str, data: str, stride: int, out: str, reference: str = "", rounded: bool = False
) -> dict[str, Any]:
    """Runs a graph over the texts and keeps its logits in `out`.

    Args:
        reference: the FP32 graph's logits, a file that this function wrote; empty for the FP32 graph itself.

    Returns:
        `texts`, and against the reference `max_error` and `mean_error` of the logits (None where one is not
        finite), `label_flips` (texts whose label differs, those without a finite answer included) and
        `not_finite`.
    """
    logits = answers(Path(graph), Path(data), stride, rounded)
    np.save(out, logits)
    if not reference:
        return {"texts": len(logits)}
    wanted = np.load(reference)
    finite = np.isfinite(logits).all(axis=1)
    flips = ~finite | (logits.argmax(axis=1) != wanted.argmax(axis=1))
    errors = np.abs(logits - wanted) if finite.all() else None
    return {
        "texts": len(logits),
        "max_error": None if errors is None else float(errors.max()),
        "mean_error": None if errors is None else float(errors.mean()),
        "label_flips": int(flips.sum()),
        "not_finite": int((~finite).sum()),
    }


def facts(graph: Path) -> dict[str, Any]:
    """Size and casts of a graph: `bytes` with external data, `casts` the nodes of type Cast, all of them."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    external = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    size = graph.stat().st_size + sum((graph.parent / name).stat().st_size for name in external)
    operators = Counter(node.op_type for node in model.graph.node)
    return {"bytes": size, "casts": operators["Cast"], "nodes": sum(operators.values())}
