"""Attention-mask constants, and whether they survive the addition of a score in FP16."""

from __future__ import annotations

import math

from bertmp.export.graph.patterns import MaskPath
from bertmp.export.lint.findings import Finding, Mask
from bertmp.export.lint.graph_view import FP16, GraphView

_CHANGES = ("Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Neg")
"""Operators whose result is a new number, not a moved one."""

_SCORES = 16384.0
"""What is left to the scores: a quarter of FP16's range."""


def find_masks(view: GraphView) -> tuple[Mask, ...]:
    """The mask constants of a graph."""
    return tuple(
        Mask(
            constant=path.constant,
            value=path.value,
            added_in=tuple(sorted({view.precision(view.named[name]) for name in _changing(path, view)})),
            softmaxes=len(path.softmaxes),
            survives=abs(path.value) <= FP16.largest - _SCORES,
        )
        for path in view.masks
    )


def mask_findings(view: GraphView) -> list[Finding]:
    """Mask constants that leave the range of the type that they are added in, or would in FP16."""
    return [finding for path in view.masks if (finding := _judge(path, view))]


def _judge(path: MaskPath, view: GraphView) -> Finding | None:
    if abs(path.value) <= FP16.largest - _SCORES:
        return None
    low = [name for name in _changing(path, view) if view.precision(view.named[name]) == "fp16"]
    what = f"the mask constant {path.value:.5g} ({path.constant})"
    if not low and not view.is_fp32:
        return None  # it stays in FP32, or in BF16, which reaches as far
    effect = _effect(path, view)
    if low:
        multiplied = not _held(path) and any(view.named[name].op_type == "Mul" for name in low)
        return Finding(
            "error" if multiplied else "warning", "mask-constant", low[0],
            f"{what} is added in FP16: {effect}",
            "replace it by -16384, or keep the additions up to the softmax in FP32", tuple(low),
        )  # fmt: skip
    return Finding(
        "warning", "mask-constant", path.nodes[0] if path.nodes else path.softmaxes[0],
        f"{what} does not survive in FP16: {effect}",
        "'bertmp convert' replaces it or keeps its path to the softmax in FP32", path.nodes,
    )  # fmt: skip


def _held(path: MaskPath) -> bool:
    """Whether FP16 holds the constant itself."""
    return math.isfinite(path.value) and abs(path.value) <= FP16.largest


def _effect(path: MaskPath, view: GraphView) -> str:
    if _held(path):
        return (
            "with a negative score it overflows to -inf, and a fully masked row becomes NaN"
            if path.value < 0
            else "with a positive score it overflows"
        )
    if any(view.named[name].op_type == "Mul" for name in path.nodes):
        return "it becomes infinite, and times the mask's 0 that is NaN for every input"
    return "it becomes infinite, and a fully masked row becomes NaN"


def _changing(path: MaskPath, view: GraphView) -> list[str]:
    return [name for name in path.nodes if view.named[name].op_type in _CHANGES]
