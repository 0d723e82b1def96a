"""Ranges that training recorded, as tensors of the exported graph.

Training records modules, not tensors: a module's output, and the input of a LayerNorm. The ranges of
tensors that only move, average or bias such values follow. What no module outputs is unknown, above all
attention scores; a calibration file measures them, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import MOVING_OPS, input_names, module_of, output_names
from bertmp.export.graph.types import FLOAT
from bertmp.export.precision.ranges import Ranges

FORMAT = 1

Modules = Mapping[str, Mapping[str, float]]
"""Module → `max_abs` of its output, `input_max_abs` of a LayerNorm's input."""


def trained_ranges(file: Path, graph: ModelProto) -> Ranges:
    """The ranges of a checkpoint's `activation-ranges.json`.

    Args:
        graph: the checkpoint's FP32 graph, whose nodes record their modules.

    Raises:
        InputError: the file is damaged or of another format.
    """
    modules, index = _read(file), GraphIndex(graph)
    largest = _module_outputs(modules, index)
    for node in index.nodes:
        seen = modules.get(module_of(node), {}).get("input_max_abs")
        if node.op_type == "LayerNormalization" and seen is not None:
            largest[input_names(node)[0]] = seen
    _before_bias(largest, index)
    _through_moves(largest, index.nodes)
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


def _module_outputs(modules: Modules, graph: GraphIndex) -> dict[str, float]:
    """What modules output: the FP32 tensor that their last node in graph order writes."""
    last: dict[str, str] = {}
    for node in graph.nodes:
        name = output_names(node)[0] if node.outputs else ""
        if graph.types.get(name) == FLOAT:
            last.update(dict.fromkeys(_enclosing(module_of(node)), name))
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


def _before_bias(largest: dict[str, float], graph: GraphIndex) -> None:
    """The range after a bias was added gives the range before it, up to the bias."""
    for node in graph.nodes:
        output, inputs = output_names(node)[0], input_names(node)
        if node.op_type == "Add" and output in largest:
            for name, other in (inputs, reversed(inputs)):
                if name not in graph.constants and other in graph.constants:
                    bias = float(np.abs(graph.constants[other]).max(initial=0))
                    largest.setdefault(name, largest[output] + bias)


def _through_moves(largest: dict[str, float], nodes: Sequence[ir.Node]) -> None:
    """Carries known ranges through data movement, and through the averages that attention takes."""
    averages: set[str] = set()
    for node in nodes:
        output, inputs = output_names(node)[0], input_names(node)
        if node.op_type == "Softmax":
            averages.add(output)
            largest.setdefault(output, 1.0)
        is_average = node.op_type == "MatMul" and inputs[0] in averages
        if is_average or node.op_type in MOVING_OPS:
            source = inputs[1 if is_average else 0]
            if source in largest:
                largest.setdefault(output, largest[source])
