"""Ranges that training recorded, as tensors of the exported graph.

Training sees modules, not tensors: what a module outputs, and what enters a LayerNorm. From these follow the
tensors that only move, average or bias such values. What no module outputs is not known, above all attention
scores; a calibration file measures them, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.export.graph.graph_index import constants
from bertmp.export.graph.tracing import module_of
from bertmp.export.graph.types import FLOAT, element_types
from bertmp.export.precision.ranges import Ranges

FORMAT = 1

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Flatten", "Expand", "Gather")
"""Operators whose results are among the elements of their first input."""

Modules = Mapping[str, Mapping[str, float]]
"""Module → `max_abs` of its output, `input_max_abs` of a LayerNorm's input."""


def trained_ranges(file: Path, graph: ModelProto) -> Ranges:
    """The ranges of a checkpoint's `activation-ranges.json`.

    Args:
        graph: the checkpoint's FP32 graph, whose nodes name their modules.

    Errors: InputError where the file is damaged or of another format.
    """
    modules = _read(file)
    largest = _outputs(modules, graph)
    for node in graph.graph.node:
        seen = modules.get(module_of(node), {}).get("input_max_abs")
        if node.op_type == "LayerNormalization" and seen is not None:
            largest[node.input[0]] = seen
    _before_bias(largest, graph)
    _moved(largest, graph)
    return Ranges(largest, "training", str(file), sha256_file(file), 0)


def _read(file: Path) -> Modules:
    data = read_json(file)
    todo = "train again, give --calibration, or remove the file"
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"not activation ranges of format {FORMAT}", file, todo)
    try:
        modules = {
            module: {key: float(value) for key, value in seen.items()}
            for module, seen in data["modules"].items()
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError("damaged activation ranges", file, todo) from error
    return {
        module: {key: math.inf if math.isnan(value) else value for key, value in seen.items()}
        for module, seen in modules.items()
    }


def _outputs(modules: Modules, graph: ModelProto) -> dict[str, float]:
    """What modules output: the FP32 tensor that their last node in graph order writes."""
    types = element_types(graph)
    last: dict[str, str] = {}
    for node in graph.graph.node:
        if node.output and types.get(node.output[0]) == FLOAT:
            last.update(dict.fromkeys(_enclosing(module_of(node)), node.output[0]))
    largest: dict[str, float] = {}
    for module, name in last.items():
        if "max_abs" in modules.get(module, {}):
            # A module that returns more than this tensor has a larger maximum: the least is the tensor's.
            largest[name] = min(modules[module]["max_abs"], largest.get(name, math.inf))
    return largest


def _enclosing(module: str) -> Iterator[str]:
    """`a.b.c` → a, a.b, a.b.c."""
    parts = module.split(".") if module else []
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _before_bias(largest: dict[str, float], graph: ModelProto) -> None:
    """What is known after a bias was added is known before it, up to the bias."""
    weights = constants(graph)
    for node in graph.graph.node:
        if node.op_type == "Add" and node.output[0] in largest:
            for name, other in (tuple(node.input), tuple(reversed(node.input))):
                if name not in weights and other in weights:
                    bias = float(np.abs(weights[other]).max(initial=0))
                    largest.setdefault(name, largest[node.output[0]] + bias)


def _moved(largest: dict[str, float], graph: ModelProto) -> None:
    """Carries what is known through moves, and through the averages that attention takes."""
    averages: set[str] = set()
    for node in graph.graph.node:
        if node.op_type == "Softmax":
            averages.add(node.output[0])
            largest.setdefault(node.output[0], 1.0)
        averaged = node.op_type == "MatMul" and node.input[0] in averages
        if averaged or node.op_type in _MOVES:
            source = node.input[1 if averaged else 0]
            if source in largest:
                largest.setdefault(node.output[0], largest[source])
