"""What the graph is made of: sensitive operators in 16 bits, quantised parts, control flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import onnx_ir as ir

from bertmp.export.graph.nodes import (
    DEQUANTIZE_OPS,
    NORMALISATION_OPS,
    QUANTIZE_OPS,
    SOFTMAX_OPS,
    is_onnx_op,
    name_of,
    subgraphs,
)
from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.lint.findings import Finding
from bertmp.export.lint.graph_view import GraphView


def structure_findings(view: GraphView) -> list[Finding]:
    """Findings that need neither values nor texts."""
    return [
        *_invalid(view),
        *_decomposed_in_16_bits(view),
        *_single_nodes_in_16_bits(view),
        *_left_alone(view),
    ]


def _invalid(view: GraphView) -> list[Finding]:
    if not view.type_error:
        return []
    advice = (
        "convert the FP32 graph again with a tool that keeps its types consistent, such as 'bertmp convert'"
    )
    return [
        Finding("error", "types", "", f"the graph's types contradict each other: {view.type_error}", advice)
    ]


def _single_nodes_in_16_bits(view: GraphView) -> list[Finding]:
    kinds: tuple[tuple[str, Sequence[str], str, str], ...] = (
        (
            "normalisation",
            NORMALISATION_OPS,
            "sums of squares overflow or lose small terms",
            "keep them in FP32, their scales and biases too",
        ),
        (
            "softmax",
            SOFTMAX_OPS,
            "sums of exponentials lose the small ones",
            "keep them in FP32",
        ),
    )
    found = []
    for rule, operators, why, advice in kinds:
        nodes = _names(view, partial(_is_low_one_of, view, operators))
        if nodes:
            what = view.named[nodes[0]].op_type
            found.append(
                Finding(
                    "warning", rule, nodes[0],
                    f"{len(nodes)} {what} in 16 bits: {why}, unless the runtime computes inside in FP32",
                    advice, nodes,
                )
            )  # fmt: skip
    return found


def _decomposed_in_16_bits(view: GraphView) -> list[Finding]:
    """A runtime can compute a LayerNormalization node in FP32 internally, but not a decomposed one."""
    nodes = _names(view, lambda node: name_of(node) in view.norms and _is_low(node, view))
    squares = [name for name in nodes if view.named[name].op_type in ("Pow", "ReduceMean")]
    if not nodes:
        return []
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


def _left_alone(view: GraphView) -> list[Finding]:
    kinds: tuple[tuple[str, Callable[[ir.Node], bool], str, str], ...] = (
        (
            "quantised",
            lambda node: node.op_type in (*QUANTIZE_OPS, *DEQUANTIZE_OPS),
            "nodes quantise or dequantise",
            "these regions keep their precision in a conversion",
        ),
        (
            "control-flow",
            lambda node: bool(subgraphs(node)),
            "nodes have subgraphs, which are not checked",
            "a conversion keeps them in FP32",
        ),
        (
            "unknown-operator",
            lambda node: not is_onnx_op(node),
            "nodes are not ONNX's own operators",
            "only a runtime that has them loads the graph; a conversion keeps them in FP32",
        ),
    )
    found = []
    for rule, matches, what, advice in kinds:
        nodes = _names(view, matches)
        if nodes:
            operators = ", ".join(sorted({view.named[name].op_type for name in nodes}))
            sentence = f"{len(nodes)} {what} ({operators})"
            found.append(Finding("note", rule, nodes[0], sentence, advice, nodes))
    return found


def _names(view: GraphView, matches: Callable[[ir.Node], bool]) -> tuple[str, ...]:
    return tuple(name_of(node) for node in view.nodes if matches(node))


def _is_low_one_of(view: GraphView, operators: Sequence[str], node: ir.Node) -> bool:
    return node.op_type in operators and _is_low(node, view)


def _is_low(node: ir.Node, view: GraphView) -> bool:
    return view.precision(node) in LOW_TYPES
