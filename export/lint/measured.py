"""What the tensors of a graph in any types become on real text, and what follows from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from bertmp.export.export_options import HEADROOM
from bertmp.export.graph.nodes import name_of, output_names
from bertmp.export.graph.ort_sessions import Feed, open_measuring_session, run
from bertmp.export.graph.types import FLOAT, LOW_TYPES
from bertmp.export.graph.weights import WeightlessGraph
from bertmp.export.lint.findings import Finding, Tensor
from bertmp.export.lint.graph_view import FP16, GraphView
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.fp16_emulation import rounded

Progress = Callable[[int, int], None]

_SUBNORMAL = 0.25
_ENDS = ("max", "min", "small", "zero", "size")
_PREFIX = "explained/"


def measure_tensors(view: GraphView, calibration: Calibration, progress: Progress) -> tuple[Tensor, ...]:
    """Runs the graph and records every floating-point tensor's extremes and small values.

    Each 16-bit tensor is rounded to its type and all arithmetic is FP32: what overflows becomes infinite,
    whatever this machine's kernels would hide, and BF16 needs no kernels.

    Raises:
        InputError: ONNX Runtime does not load the graph or the examples do not fit its inputs.
    """
    names = [
        name
        for node in view.nodes
        if node.op_type != "Constant"
        for name in output_names(node)
        if name and view.kind(name) in ("fp32", *LOW_TYPES)
    ]
    feeds = [_widened(feed) for feed in calibration.feeds]
    session = open_measuring_session(_with_measures(rounded(view.graph), names, view))
    outputs = [f"{_PREFIX}{name}/{end}" for name in names for end in _ENDS]
    largest, counts = np.zeros(len(names)), np.zeros((len(names), 3))
    for done, feed in enumerate(feeds):
        progress(done, len(feeds))
        found = np.array(run(session, outputs, feed, calibration.file), np.float64).reshape(len(names), -1)
        ends = np.abs(found[:, :2])
        ends[np.isnan(ends)] = np.inf
        largest = np.maximum(largest, ends.max(axis=1))
        counts += found[:, 2:]
    progress(len(calibration.feeds), len(calibration.feeds))
    return tuple(_tensor(name, view, float(largest[i]), counts[i]) for i, name in enumerate(names))


def _widened(feed: Feed) -> Feed:
    """16-bit inputs as the FP32 that they are in the arithmetic used here."""
    low = [name for name, array in feed.items() if array.dtype.itemsize == 2 and array.dtype.kind in "fV"]
    return {**feed, **{name: feed[name].astype(np.float32) for name in low}}


def _tensor(name: str, view: GraphView, largest: float, counts: np.ndarray) -> Tensor:
    small, zero, size = counts
    node, low = view.producer(name), view.judged_by(name)
    assert node is not None
    return Tensor(
        name=name,
        node=name_of(node),
        block=view.blocks[name_of(node)],
        type=view.kind(name),
        largest=largest,
        headroom=low.largest / largest if largest else float("inf"),
        subnormal=float((small - zero) / max(1.0, size - zero)),
    )


def _with_measures(light: WeightlessGraph, names: list[str], view: GraphView) -> WeightlessGraph:
    """The graph with, of each tensor, its extremes, its small values, zeros and size as outputs."""
    model = ModelProto()
    model.CopyFrom(light.model)
    graph = model.graph
    del graph.output[:]
    limits = {name: view.judged_by(name).smallest_normal for name in names}
    for limit in set(limits.values()):
        graph.initializer.append(numpy_helper.from_array(np.float32(limit), f"{_PREFIX}{limit}"))
    graph.initializer.append(numpy_helper.from_array(np.float32(0), f"{_PREFIX}0"))
    for name in names:
        _measure_one(graph, name, f"{_PREFIX}{limits[name]}")
    return WeightlessGraph(model, light.weights)


def _measure_one(graph: GraphProto, name: str, limit: str) -> None:
    at = f"{_PREFIX}{name}"
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("ReduceMax", [name], "max", {"keepdims": 0}),
        ("ReduceMin", [name], "min", {"keepdims": 0}),
        ("Abs", [name], "abs", {}),
        ("Less", [f"{at}/abs", limit], "is_small", {}),
        ("Cast", [f"{at}/is_small"], "smalls", {"to": FLOAT}),
        ("ReduceSum", [f"{at}/smalls"], "small", {"keepdims": 0}),
        ("Equal", [f"{at}/abs", f"{_PREFIX}0"], "is_zero", {}),
        ("Cast", [f"{at}/is_zero"], "zeros", {"to": FLOAT}),
        ("ReduceSum", [f"{at}/zeros"], "zero", {"keepdims": 0}),
        ("Size", [name], "count", {}),
        ("Cast", [f"{at}/count"], "size", {"to": FLOAT}),
    )
    for operator, inputs, end, attributes in steps:
        out = f"{at}/{end}"
        graph.node.append(helper.make_node(operator, inputs, [out], name=out, **attributes))
        if end in _ENDS:
            graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, []))


def range_findings(tensors: tuple[Tensor, ...], view: GraphView) -> list[Finding]:
    """Overflow, too little headroom, and tensors that lie too low for 16 bits."""
    return [*_overflows(tensors, view), *_near_overflow(tensors, view), *_too_small(tensors, view)]


def _overflows(tensors: tuple[Tensor, ...], view: GraphView) -> list[Finding]:
    """The first tensor that is not finite; what follows it is its consequence."""
    broken = [tensor for tensor in tensors if tensor.largest == float("inf")]
    wrong = [tensor for tensor in broken if tensor.name not in view.on_mask_paths]
    if not wrong:
        return []
    first = wrong[0]
    return [
        Finding(
            "error", "overflow", first.node,
            f"{first.name} ({first.type}) is not finite on these examples, nor are {len(wrong) - 1} others",
            "keep the node that writes it in FP32, and what reads it; 'bertmp convert --calibration' does",
            tuple(tensor.node for tensor in wrong),
        )
    ]  # fmt: skip


def _near_overflow(tensors: tuple[Tensor, ...], view: GraphView) -> list[Finding]:
    """The tensor with the least headroom of each block; FP32 tensors count where nothing is 16-bit."""
    worst: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        counts = tensor.type in LOW_TYPES or view.is_fp32
        near = tensor.headroom < HEADROOM and tensor.largest < float("inf")
        if counts and near and tensor.name not in view.on_mask_paths:
            worst.setdefault(tensor.block, []).append(tensor)
    found = []
    for block, those in worst.items():
        tensor = min(those, key=lambda item: item.headroom)
        limit = view.judged_by(tensor.name).largest
        over = "overflows" if tensor.headroom < 1 else "leaves little headroom"
        found.append(
            Finding(
                "warning", "headroom", tensor.node,
                f"{tensor.name} reaches {tensor.largest:.4g} on these examples: {over} "
                f"({limit:.5g} is {tensor.headroom:.2g} times that, {HEADROOM:g} is required)"
                + (f", like {len(those) - 1} others in {block or 'the graph'}" if len(those) > 1 else ""),
                "keep these nodes in FP32; 'bertmp convert --calibration' does",
                tuple(item.node for item in those),
            )
        )  # fmt: skip
    return found


def _too_small(tensors: tuple[Tensor, ...], view: GraphView) -> list[Finding]:
    """Tensors in FP16 that are small throughout. A softmax's results are meant to be."""
    found = []
    for tensor in tensors:
        small = tensor.type == "fp16" and tensor.subnormal >= _SUBNORMAL
        if not small or view.is_from_softmax(tensor.name):
            continue
        found.append(
            Finding(
                "warning", "subnormal", tensor.node,
                f"{tensor.subnormal:.0%} of {tensor.name} lie below FP16's smallest normal number "
                f"{FP16.smallest_normal:.2g} on these examples: they keep fewer than 11 bits",
                "keep this node in FP32, or scale the tensor up where it is made", (tensor.node,),
            )
        )  # fmt: skip
    return found
