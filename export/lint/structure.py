"""What a graph shows without any text: sensitive operators in 16 bits, parts left alone, masks and casts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from bertmp.export.graph.nodes import (
    DEQUANTIZE_OPS,
    NORMALISATION_OPS,
    QUANTIZE_OPS,
    SOFTMAX_OPS,
    is_onnx_op,
    name_of,
    output_names,
    subgraphs,
)
from bertmp.export.graph.patterns import MaskPath
from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.lint.findings import Finding, Mask, findings_about
from bertmp.export.lint.graph_view import FP16, GraphView

_CHANGES = ("Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Neg")
"""Operators whose result is a new number, not a moved one."""

_SCORES = 16384.0
"""What is left to the scores: a quarter of FP16's range."""


def structure_findings(view: GraphView) -> list[Finding]:
    """Findings that need neither values nor texts."""
    return [
        *_invalid(view),
        *_decomposed_in_16_bits(view),
        *_single_nodes_in_16_bits(view),
        *_inexact_in_16_bits(view),
        *_left_alone(view),
    ]


def _invalid(view: GraphView) -> list[Finding]:
    if not view.type_error:
        return []
    what = f"the graph's types contradict each other: {view.type_error}"
    advice = (
        "convert the FP32 graph again with a tool that keeps its types consistent, such as 'bertmp convert'"
    )
    return [Finding("error", "types", "", what, advice)]


def _decomposed_in_16_bits(view: GraphView) -> list[Finding]:
    """A runtime can compute a LayerNormalization node in FP32 internally, but not a decomposed one."""
    nodes = _names(view, lambda node: name_of(node) in view.norms and view.precision(node) in LOW_TYPES)
    if not nodes:
        return []
    squares = [name for name in nodes if view.named[name].op_type in ("Pow", "ReduceMean")]
    norms = len({view.norms[name] for name in nodes})
    sums = f", {len(squares)} of them squares and means" if squares else ""
    return [
        Finding(
            "warning", "decomposed-normalisation", (squares or nodes)[0],
            f"{norms} normalisations are decomposed, and {len(nodes)} of their nodes run in 16 bits{sums}: "
            "squares overflow from 256 on in FP16, and every step rounds",
            "keep all of them in FP32, or export at opset 17 or later, which has LayerNormalization", nodes,
        )
    ]  # fmt: skip


def _single_nodes_in_16_bits(view: GraphView) -> list[Finding]:
    kinds: tuple[tuple[str, Sequence[str], str, str], ...] = (
        (
            "normalisation", NORMALISATION_OPS, "sums of squares overflow or lose small terms",
            "keep them in FP32, their scales and biases too",
        ),
        ("softmax", SOFTMAX_OPS, "sums of exponentials lose the small ones", "keep them in FP32"),
    )  # fmt: skip
    low = [
        node for node in view.nodes if view.precision(node) in LOW_TYPES and not _has_softmax_in_fp32(node)
    ]
    found = ((rule, [n for n in low if n.op_type in ops], why, advice) for rule, ops, why, advice in kinds)
    return findings_about(
        (
            rule, [name_of(node) for node in nodes],
            f"{len(nodes)} {nodes[0].op_type} in 16 bits: {why}, unless the runtime computes inside in FP32",
            advice,
        )
        for rule, nodes, why, advice in found
        if nodes
    )  # fmt: skip


def _inexact_in_16_bits(view: GraphView) -> list[Finding]:
    """Angles, positions and guards of divisions, which 16 bits spoil whatever the inputs are."""

    def low(names: Iterable[str]) -> list[str]:
        return [name for name in names if view.precision(view.named[name]) in LOW_TYPES]

    angles = low(view.angles)
    positions = [
        name_of(node) for node in view.nodes if any(view.low(name) for name in _positions_of(node, view))
    ]
    guards = [name for name in low(view.guards) if view.guards[name].value < FP16.smallest_normal]
    guards = [
        name for name in guards if view.precision(view.named[name]) == "fp16" and name not in view.norms
    ]
    smallest = f"{FP16.smallest_normal:.2g}"
    kinds = (
        ("angle", angles, "compute angles in 16 bits: by half a radian off at position 1000 in FP16"),
        ("position", positions, "compute with positions in 16 bits: FP16 counts to 2048, BF16 to 256"),
        (
            "guard", guards, f"divide by what a constant below FP16's smallest normal number, {smallest}, "
            "keeps from 0: 0/0 is not a number",
        ),
    )  # fmt: skip
    advice = "keep them in FP32; 'bertmp convert' does"
    return findings_about((rule, nodes, f"{len(nodes)} nodes {what}", advice) for rule, nodes, what in kinds)


def _positions_of(node: ir.Node, view: GraphView) -> frozenset[str]:
    """What a node computes from positions; a cast alone spoils nothing that is not computed with."""
    return view.positions.intersection(output_names(node)) if not view.is_cast(node) else frozenset()


def _has_softmax_in_fp32(node: ir.Node) -> bool:
    """Whether an Attention of any type is told to compute its softmax in FP32."""
    precision = node.attributes.get("softmax_precision")
    return node.op_type == "Attention" and precision is not None and precision.value == ir.DataType.FLOAT


def _left_alone(view: GraphView) -> list[Finding]:
    quantising = (*QUANTIZE_OPS, *DEQUANTIZE_OPS)
    kinds: tuple[tuple[str, Callable[[ir.Node], bool], str, str], ...] = (
        (
            "quantised", lambda node: node.op_type in quantising, "nodes quantise or dequantise",
            "these regions keep their precision in a conversion",
        ),
        (
            "control-flow", lambda node: bool(subgraphs(node)), "nodes have subgraphs, which are not checked",
            "a conversion keeps them in FP32",
        ),
        (
            "unknown-operator", lambda node: not is_onnx_op(node), "nodes are not ONNX's own operators",
            "only a runtime that has them loads the graph; a conversion keeps them in FP32",
        ),
    )  # fmt: skip
    found = ((rule, _names(view, matches), what, advice) for rule, matches, what, advice in kinds)
    return findings_about(
        (
            (rule, nodes, f"{len(nodes)} {what} ({_operators(nodes, view)})", advice)
            for rule, nodes, what, advice in found
        ),
        "note",
    )


def _names(view: GraphView, matches: Callable[[ir.Node], bool]) -> tuple[str, ...]:
    return tuple(name_of(node) for node in view.nodes if matches(node))


def _operators(nodes: Iterable[str], view: GraphView) -> str:
    return ", ".join(sorted({view.named[name].op_type for name in nodes}))


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
    """The nodes on a mask's path that compute with it; an Attention adds it to its scores."""
    adding = [name for name in path.softmaxes if view.named[name].op_type == "Attention"]
    return [name for name in path.nodes if view.named[name].op_type in _CHANGES] + adding
