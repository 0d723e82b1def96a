"""Graphs whose FP16 overflows, made from a real one whose FP32 answers they keep."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper

LAYER = 3


def large_values(graph: ModelProto, factor: float = 20_000) -> None:
    """One layer's attention values `factor` times as large, and what reads them as much smaller."""
    layer = f"bert.encoder.layer.{LAYER}.attention"
    _scale(graph, f"{layer}.self.value.weight/transposed", factor)
    _scale(graph, f"{layer}.self.value.bias", factor)
    _scale(graph, f"{layer}.output.dense.weight/transposed", 1 / factor)


def large_residual(graph: ModelProto, largest: float, measured: float) -> None:
    """The largest feature of one residual sum before a LayerNorm reaches `largest`.

    Both addends are scaled, which the LayerNorm undoes; so do the weights of what else reads the first.

    Args:
        measured: what the sum reaches as it is.
    """
    layer, factor = f"bert.encoder.layer.{LAYER}", largest / measured
    _scale(graph, f"{layer}.attention.output.LayerNorm.weight", factor)
    _scale(graph, f"{layer}.attention.output.LayerNorm.bias", factor)
    _scale(graph, f"{layer}.intermediate.dense.weight/transposed", 1 / factor)
    _scale(graph, f"{layer}.output.dense.weight/transposed", factor)
    _scale(graph, f"{layer}.output.dense.bias", factor)


def _scale(graph: ModelProto, name: str, factor: float) -> None:
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
