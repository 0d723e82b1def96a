"""Weights: what their type did to them, or would do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bertmp.export.graph.nodes import name_of
from bertmp.export.graph.types import LOW_TYPES, LowType
from bertmp.export.lint.findings import Finding, Weights
from bertmp.export.lint.graph_view import FP16, NAMES, GraphView

_SPACING = 2.0**-24
"""The distance between FP16's subnormal numbers."""


def weigh(view: GraphView) -> dict[str, Weights]:
    """The weights and constants by the type in which they are stored, FP32 first; mask constants apart."""
    masks, found = {path.constant for path in view.masks}, {}
    for element, kind in NAMES.items():
        names = [name for name, stored in view.stored.items() if stored == element and name not in masks]
        values = [view.constants[name].reshape(-1) for name in names]
        values = [value for value in values if value.size]
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

    Mask constants are not weights: see masks.py.
    """
    masks = {path.constant for path in view.masks}
    found, lost = [], []
    for name, values in view.constants.items():
        if not values.size or name in masks or not view.readers(name):
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
    masks = {path.constant for path in view.masks}
    largest: dict[str, float] = {}
    for name, values in view.constants.items():
        if not values.size or name in masks:
            continue
        for node in view.readers(name):
            block = view.blocks[name_of(node)]
            largest[block] = max(largest.get(block, 0.0), _largest(values))
    return largest
