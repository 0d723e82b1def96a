"""How long the inputs of a graph may be, where nothing but the graph itself knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import InputError, MissingComponent
from bertmp.export.graph.ort_sessions import onnxruntime_module, open_session
from bertmp.export.graph.weights import WeightlessGraph
from bertmp.export.precision.graph_inputs import role_of

_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}

_TOKEN = 2
"""Neither BERT's padding, 0, nor RoBERTa's, 1, whose tokens have no positions of their own."""


def longest_length(graph: Path | WeightlessGraph, most: int) -> int | None:
    """The most tokens that a graph takes, up to `most`, found by running it on one text.

    A graph fixes its number of positions in its weights alone: a table of that many rows. TensorRT's builder
    does not say which profile goes beyond it.

    Args:
        graph: a graph with inputs of integers, `[batch, length]` or `[batch]`.

    Returns:
        None where it cannot be found: ONNX Runtime does not load the graph, it fixes its shapes, or it runs
        on no length.
    """
    try:
        session = open_session(graph, optimization="basic")
    except (InputError, MissingComponent):
        return None
    inputs = session.get_inputs()
    lengths = [value.shape[1] for value in inputs if len(value.shape) == 2]
    is_open = lengths and all(not isinstance(length, int) for length in lengths)
    if not is_open or any(value.type not in _TYPES or len(value.shape) > 2 for value in inputs):
        return None
    if _runs(session, most):
        return most
    fits, fails = 0, most
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _runs(session, middle) else (fits, middle)
    return fits or None


def _runs(session: Any, length: int) -> bool:
    """Whether the graph runs on one text of a length."""
    options = onnxruntime_module().RunOptions()
    options.log_severity_level = 4  # a failed run is an answer here
    feed = {value.name: _values(value, length) for value in session.get_inputs()}
    try:
        session.run(None, feed, options)
    except Exception:  # the runtime's own exceptions share no other base
        return False
    return True


def _values(value: Any, length: int) -> np.ndarray:
    """What one input is fed: tokens, a mask without padding, the first type, or positions."""
    shape = (1, length)[: len(value.shape)]
    role = role_of(value.name)
    if role == "positions":
        return np.arange(length, dtype=_TYPES[value.type]).reshape(shape)
    number = {"mask": 1, "types": 0}.get(role or "ids", _TOKEN)
    return np.full(shape, number, _TYPES[value.type])
