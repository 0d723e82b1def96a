"""How large each tensor of a graph becomes on real inputs: measured, or recorded by training.

Training records modules, not tensors: a module's output, and the input of a LayerNorm. The ranges of
tensors that only move, average or bias such values follow. What no module outputs is unknown, above all
attention scores; a calibration file measures them, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import GraphProto, ModelProto, NodeProto, helper

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import MOVING_OPS, input_names, module_groups, module_of, name_of, output_names
from bertmp.export.graph.ort_sessions import open_measuring_session, run
from bertmp.export.graph.types import FLOAT, element_types
from bertmp.export.graph.weights import WeightlessGraph, split_weights
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.plan import RangeRecord

FORMAT = 1
MEASURED = "measured/"
"""Begins the names of what is added to a graph to measure it."""

Modules = Mapping[str, Mapping[str, float]]
"""Module → `max_abs` of its output, `input_max_abs` of a LayerNorm's input."""

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True)
class Ranges:
    """The largest magnitude of each tensor.

    Attributes:
        largest: tensor name → largest absolute value, infinite where one overflowed even in FP32.
        origin: where they are from; its blocks are not filled in.
        by_feed: tensor name → the same for each feed, FP64 `[feeds]`; empty where no feeds were run.
    """

    largest: Mapping[str, float]
    origin: RangeRecord
    by_feed: Mapping[str, np.ndarray] = field(default_factory=dict)


def measure(
    graph: ModelProto, calibration: Calibration, progress: Progress = lambda done, total: None
) -> Ranges:
    """Runs the FP32 graph on the examples and records the largest magnitude of every FP32 tensor.

    Weights and constants are not measured, nor what lies inside an If or Loop.

    Raises:
        InputError: the graph does not take the examples.
    """
    return measure_with_outputs(graph, calibration, (), progress)[0]


def measure_with_outputs(
    graph: ModelProto, calibration: Calibration, outputs: Sequence[str], progress: Progress
) -> tuple[Ranges, list[list[np.ndarray]]]:
    """As `measure`, and the values of some of the graph's outputs for each feed, from the same run.

    Raises:
        InputError: the graph does not take the examples.
    """
    light = split_weights(graph)
    types = element_types(light.model)
    inputs = [value.name for value in graph.graph.input]
    written = [name for node in graph.graph.node if node.op_type != "Constant" for name in node.output]
    weights = {tensor.name for tensor in graph.graph.initializer}
    tensors = [
        name for name in (*inputs, *written) if name and types.get(name) == FLOAT and name not in weights
    ]
    found = run_measured(light, tensors, (), calibration, progress, outputs)
    origin = RangeRecord(calibration.source, calibration.file, calibration.sha256, calibration.texts)
    by_tensor = dict(zip(tensors, found.largest.T, strict=True))
    largest = {name: float(values.max(initial=0)) for name, values in by_tensor.items()}
    return Ranges(largest, origin, by_tensor), found.outputs


@dataclass(frozen=True)
class Measured:
    """What a graph's tensors became.

    Attributes:
        largest: each tensor's largest magnitude for each feed, FP64 `[feeds, tensors]`.
        sums: each count's sum over the feeds, FP64 `[tensors, counts]`.
        outputs: per feed the outputs that were asked for.
    """

    largest: np.ndarray
    sums: np.ndarray
    outputs: list[list[np.ndarray]]


def run_measured(
    graph: WeightlessGraph,
    tensors: Sequence[str],
    counts: Sequence[str],
    calibration: Calibration,
    progress: Progress,
    outputs: Sequence[str] = (),
) -> Measured:
    """Runs a graph on the examples; of what is measured the runtime returns numbers alone, never tensors.

    Args:
        graph: changed: what is measured becomes its outputs.
        counts: for each of them and each tensor, the graph computes a number, `MEASURED + TENSOR/COUNT`.
        outputs: of the graph's outputs, those that are returned as they are.
    """
    kept = [value for value in graph.model.graph.output if value.name in outputs]
    for name in tensors:
        for end, operator in (("max", "ReduceMax"), ("min", "ReduceMin")):
            out = f"{MEASURED}{name}/{end}"
            graph.model.graph.node.append(helper.make_node(operator, [name], [out], name=out, keepdims=0))
    numbers = [f"{MEASURED}{name}/{end}" for name in tensors for end in ("max", "min", *counts)]
    del graph.model.graph.output[:]
    graph.model.graph.output.extend(helper.make_tensor_value_info(out, FLOAT, []) for out in numbers)
    graph.model.graph.output.extend(kept)
    _measure_early(graph.model.graph)
    session = open_measuring_session(graph)
    feeds = calibration.fp32_feeds
    largest, sums = np.zeros((len(feeds), len(tensors))), np.zeros((len(tensors), len(counts)))
    answers = []
    for done, feed in enumerate(feeds):
        progress(done, len(feeds))
        values = run(session, [*numbers, *outputs], feed, calibration.file)
        found = np.array(values[: len(numbers)], np.float64).reshape(len(tensors), 2 + len(counts))
        ends = np.abs(found[:, :2])
        ends[np.isnan(ends)] = np.inf
        largest[done] = ends.max(axis=1)
        sums += found[:, 2:]
        answers.append(values[len(numbers) :])
    progress(len(feeds), len(feeds))
    return Measured(largest, sums, answers)


def _measure_early(graph: GraphProto) -> None:
    """Moves what measures a tensor to where it is written: otherwise all tensors would be held to the end."""
    measuring: dict[str, list[NodeProto]] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.name.startswith(MEASURED):
            measuring.setdefault(node.name[len(MEASURED) :].rpartition("/")[0], []).append(node)
        else:
            nodes.append(node)
    ordered = [one for value in graph.input for one in measuring.get(value.name, ())]
    for node in nodes:
        ordered += [node, *(one for name in node.output for one in measuring.get(name, ()))]
    del graph.node[:]
    graph.node.extend(ordered)


def record(ranges: Ranges, graph: GraphIndex, limit: float) -> RangeRecord:
    """What the plan records of the ranges it was made with.

    Args:
        graph: tensors that hold a mask's large numbers are left out: they do not describe their block.
        limit: the low precision's largest number; a block's headroom is this over its largest magnitude.
    """
    blocks = module_groups(graph.nodes)
    # Positions stay FP32 whatever they are, and their logarithm is infinite at 0.
    masked = {name for path in graph.masks for name in path.tensors} | graph.positions
    largest: dict[str, float] = {}
    for node in graph.nodes:
        for name in output_names(node):
            if name in ranges.largest and name not in masked:
                block = blocks[name_of(node)]
                largest[block] = max(largest.get(block, 0.0), ranges.largest[name])
    headroom = {block: limit / value if value else float("inf") for block, value in largest.items()}
    return replace(ranges.origin, blocks=headroom)


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
    return Ranges(largest, RangeRecord("training", str(file), sha256_file(file), 0))


def _read(file: Path) -> Modules:
    data = read_json(file)
    todo = "train again, give --calibration, or remove the file"
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"not activation ranges of format {FORMAT}", file, todo)
    try:
        return {
            module: {key: _number(value) for key, value in seen.items()}
            for module, seen in data["modules"].items()
        }
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError("damaged activation ranges", file, todo) from error


def _number(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    return math.inf if math.isnan(number) else number


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
