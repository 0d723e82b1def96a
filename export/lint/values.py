"""What a graph's weights and tensors hold, and what follows from that: overflow, headroom, small values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import helper, numpy_helper

from bertmp.export.export_options import HEADROOM
from bertmp.export.graph.nodes import name_of, output_names
from bertmp.export.graph.types import FLOAT, LOW_TYPES, LowType
from bertmp.export.graph.weights import WeightlessGraph, split_weights
from bertmp.export.lint.findings import Finding, TensorSummary, Weights
from bertmp.export.lint.graph_view import FP16, NAMES, GraphView
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.fp16_emulation import rounded
from bertmp.export.precision.ranges import MEASURED, Progress, run_measured

_SUBNORMAL = 0.25
_COUNTS = ("small", "zero", "size")

_SPACING = 2.0**-24
"""The distance between FP16's subnormal numbers."""


def measure_tensors(
    view: GraphView, calibration: Calibration, progress: Progress
) -> tuple[TensorSummary, ...]:
    """Runs the graph and records every floating-point tensor's extremes and small values.

    Each 16-bit tensor is rounded to its type and all arithmetic is FP32: what overflows becomes infinite,
    whatever this machine's kernels would hide, and BF16 needs no kernels.

    Raises:
        InputError: ONNX Runtime does not load the graph or the examples do not fit its inputs.
    """
    nodes = [node for node in view.nodes if node.op_type != "Constant"]
    names = [name for node in nodes for name in output_names(node) if name]
    names = [name for name in names if view.kind(name) in ("fp32", *LOW_TYPES)]
    light = rounded(split_weights(view.graph))
    _count_small(light, names, view)
    found = run_measured(light, names, _COUNTS, calibration, progress)
    largest = found.largest.max(axis=0, initial=0)
    return tuple(_tensor(name, view, float(largest[i]), found.sums[i]) for i, name in enumerate(names))


def _tensor(name: str, view: GraphView, largest: float, counts: np.ndarray) -> TensorSummary:
    small, zero, size = counts
    node, low = view.producer(name), view.judged_by(name)
    assert node is not None
    return TensorSummary(
        name=name,
        node=name_of(node),
        block=view.blocks[name_of(node)],
        type=view.kind(name),
        largest=largest,
        headroom=low.largest / largest if largest else float("inf"),
        subnormal=float((small - zero) / max(1.0, size - zero)),
    )


def _count_small(light: WeightlessGraph, names: Sequence[str], view: GraphView) -> None:
    """Adds to the graph what counts each tensor's small values, zeros and elements."""
    graph = light.model.graph
    limits = {name: view.judged_by(name).smallest_normal for name in names}
    for limit in {*limits.values(), 0}:
        graph.initializer.append(numpy_helper.from_array(np.float32(limit), f"{MEASURED}{limit}"))
    for name in names:
        at = f"{MEASURED}{name}"
        for operator, inputs, end, attributes in (
            ("Abs", [name], "abs", {}),
            ("Less", [f"{at}/abs", f"{MEASURED}{limits[name]}"], "is_small", {}),
            ("Cast", [f"{at}/is_small"], "smalls", {"to": FLOAT}),
            ("ReduceSum", [f"{at}/smalls"], "small", {"keepdims": 0}),
            ("Equal", [f"{at}/abs", f"{MEASURED}0"], "is_zero", {}),
            ("Cast", [f"{at}/is_zero"], "zeros", {"to": FLOAT}),
            ("ReduceSum", [f"{at}/zeros"], "zero", {"keepdims": 0}),
            ("Size", [name], "count", {}),
            ("Cast", [f"{at}/count"], "size", {"to": FLOAT}),
        ):
            out = f"{at}/{end}"
            graph.node.append(helper.make_node(operator, inputs, [out], name=out, **attributes))


def range_findings(tensors: tuple[TensorSummary, ...], view: GraphView) -> list[Finding]:
    """Overflow, too little headroom, and tensors that lie too low for 16 bits."""
    return [*_overflows(tensors, view), *_near_overflow(tensors, view), *_too_low(tensors, view)]


def _overflows(tensors: tuple[TensorSummary, ...], view: GraphView) -> list[Finding]:
    """The first tensor that is not finite; what follows it is its consequence."""
    # The logarithm of a position may be infinite; a graph that uses it selects another value there.
    broken = [
        tensor
        for tensor in tensors
        if tensor.largest == float("inf") and not (tensor.name in view.positions and tensor.type == "fp32")
    ]
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


def _near_overflow(tensors: tuple[TensorSummary, ...], view: GraphView) -> list[Finding]:
    """The tensor with the least headroom of each block; FP32 tensors count where nothing is 16-bit."""
    worst: dict[str, list[TensorSummary]] = {}
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


def _too_low(tensors: tuple[TensorSummary, ...], view: GraphView) -> list[Finding]:
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


def weigh(view: GraphView) -> dict[str, Weights]:
    """The weights and constants by the type in which they are stored, FP32 first; mask constants apart."""
    found = {}
    for element, kind in NAMES.items():
        values = [value.reshape(-1) for name, value in view.weights.items() if view.stored[name] == element]
        if not values:
            continue
        elements = sum(value.size for value in values)
        zeros = sum(int(np.count_nonzero(value == 0)) for value in values)
        low = LOW_TYPES.get(kind, FP16)
        small = sum(_below(value, low) for value in values)
        found[kind] = Weights(
            tensors=len(values),
            elements=elements,
            bytes=elements * {"fp64": 8, "fp32": 4}.get(kind, 2),
            largest=max(_largest(value) for value in values),
            subnormal=small / max(1, elements - zeros),
            zero=zeros / elements,
        )
    return found


def weight_findings(view: GraphView) -> list[Finding]:
    """Weights that their type cannot hold, or could not.

    Mask constants are not weights: see `mask_findings`.
    """
    found, lost = [], []
    for name, values in view.weights.items():
        if not view.readers(name):
            continue
        low = LOW_TYPES.get(NAMES[view.stored[name]])
        if view.is_fp32 and values.size == 1 and 0 < abs(values.item()) < FP16.smallest_normal:
            lost.append(name)
        elif finding := _stored_low(name, values, low, view) if low else _stored_fp32(name, values, view):
            found.append(finding)
    return found + _lost(lost, view)


def _lost(constants: list[str], view: GraphView) -> list[Finding]:
    """Single small numbers, such as a normalisation's ε, that FP16 loses."""
    if not constants:
        return []
    nodes = tuple(node for name in constants for node in _reader_names(name, view))
    smallest = min(abs(view.constants[name].item()) for name in constants)
    return [
        Finding(
            "note", "small-constants", nodes[0],
            f"{len(constants)} constants lie below FP16's smallest normal number {FP16.smallest_normal:.2g}, "
            f"the smallest is {smallest:.2g}; FP16 makes 0 of what is below 3e-8",
            "keep what reads them in FP32; 'bertmp convert' does", nodes,
        )
    ]  # fmt: skip


def _stored_low(name: str, values: np.ndarray, low: LowType, view: GraphView) -> Finding | None:
    nodes = _reader_names(name, view)
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        return Finding(
            "error", "weight-beyond-range", nodes[0],
            f"{name} holds {broken} values that are not finite: they were beyond {low.label}'s "
            f"{low.largest:.5g} when it was converted",
            "keep this node's weights in FP32", nodes,
        )  # fmt: skip
    todo = "keep this node in FP32, or scale these weights up and the layer before them down"
    return _too_small(name, values, low, nodes, "has changed", todo)


def _stored_fp32(name: str, values: np.ndarray, view: GraphView) -> Finding | None:
    """What a conversion to FP16 that looks at nothing would do; of converted graphs nothing is asked."""
    if not view.is_fp32:
        return None
    nodes, largest = _reader_names(name, view), _largest(values)
    if not largest <= FP16.largest:
        return Finding(
            "warning", "weight-beyond-range", nodes[0],
            f"{name} reaches {largest:.4g}, beyond FP16's {FP16.largest:.0f}",
            "keep this node in FP32; 'bertmp convert' does", nodes,
        )  # fmt: skip
    return _too_small(
        name, values, FP16, nodes, "would change", "keep this node in FP32; 'bertmp convert' does"
    )


def _too_small(
    name: str, values: np.ndarray, low: LowType, nodes: tuple[str, ...], effect: str, todo: str
) -> Finding | None:
    """Weights that lose more below the type's smallest normal number than rounding costs anyway."""
    share, error = _harm_of_subnormals(values, low)
    if error <= 2 * low.roundoff:
        return None
    return Finding(
        "warning", "small-weights", nodes[0],
        f"{share:.0%} of {name} lie below {low.label}'s smallest normal number {low.smallest_normal:.2g}: "
        f"rounding them {effect} the tensor by about {error:.2g} of its norm, {low.roundoff:.2g} is usual",
        todo, nodes,
    )  # fmt: skip


def _harm_of_subnormals(values: np.ndarray, low: LowType) -> tuple[float, float]:
    """The share of subnormal values, and the rounding error that they bring, relative to the norm.

    A value rounded to a grid is off by the grid's distance over √12 on average.
    """
    if low.name != "fp16":
        return 0.0, 0.0  # BF16 reaches as far down as FP32
    nonzero = int(np.count_nonzero(values))
    flat = values.reshape(-1)
    norm = float(np.sqrt(np.dot(flat, flat)))
    if not nonzero or not norm:
        return 0.0, 0.0
    small = _below(values, low)
    return small / nonzero, (small / 12) ** 0.5 * _SPACING / norm


def _below(values: np.ndarray, low: LowType) -> int:
    """How many values other than 0 lie below the smallest normal number."""
    magnitudes = np.abs(values)
    return int(np.count_nonzero((magnitudes < low.smallest_normal) & (magnitudes > 0)))


def _largest(values: np.ndarray) -> float:
    largest = float(np.abs(values).max())
    return largest if np.isfinite(largest) else float("inf")


def _reader_names(name: str, view: GraphView) -> tuple[str, ...]:
    return tuple(name_of(node) for node in view.readers(name))


def block_weights(view: GraphView) -> Mapping[str, float]:
    """Block → largest magnitude of its weights, mask constants apart."""
    largest: dict[str, float] = {}
    for name, values in view.weights.items():
        for node in view.readers(name):
            block = view.blocks[name_of(node)]
            largest[block] = max(largest.get(block, 0.0), _largest(values))
    return largest
