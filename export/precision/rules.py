"""The rules that keep nodes in FP32: one small function each, which returns the reason or None."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import onnx_ir as ir

from bertmp.core.errors import InputError
from bertmp.export.graph.nodes import (
    DEQUANTIZE_OPS,
    NORMALISATION_OPS,
    QUANTIZE_OPS,
    REDUCTION_OPS,
    SOFTMAX_OPS,
    input_names,
    is_onnx_op,
    module_of,
    name_of,
    output_names,
    readers_of,
    subgraphs,
)
from bertmp.export.graph.types import accepts_low_type
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rule_context import Rule, RuleContext, Strength
from bertmp.export.precision.value_rules import (
    angle,
    beyond_headroom,
    constant_beyond_range,
    guard,
    position,
    small_weights,
)


def normalisation(node: ir.Node, context: RuleContext) -> Reason | None:
    """Normalisations sum squares over the hidden width: FP16 sums overflow or lose their small parts."""
    part_of, low = context.graph.norms.get(name_of(node)), context.low
    if node.op_type not in NORMALISATION_OPS and part_of is None:
        return None
    subject = f"{node.op_type} is part of {part_of}, which" if part_of else node.op_type
    return Reason(
        "normalisation",
        f"{subject} sums squares over the hidden width; {low.label} sums overflow beyond {low.largest:.5g} "
        "and round away small terms",
        {"limit": low.largest},
    )


def softmax(node: ir.Node, context: RuleContext) -> Reason | None:
    """Softmax exponentiates and sums: FP16 has 11 bits for terms that differ by orders of magnitude."""
    if node.op_type not in SOFTMAX_OPS:
        return None
    label, bits = context.low.label, context.low.significand_bits
    does = "has a softmax that cannot be taken out, which " if node.op_type == "Attention" else ""
    sentence = (
        f"{node.op_type} {does}sums exponentials of very different size, of which {label} keeps {bits} bits"
    )
    return Reason("softmax", sentence, {"significand_bits": bits})


def reduction(node: ir.Node, context: RuleContext) -> Reason | None:
    """Sums over many elements accumulate rounding errors in 16 bits."""
    if node.op_type not in REDUCTION_OPS:
        return None
    label, bits = context.low.label, context.low.significand_bits
    lost = f"{label} keeps {bits} bits of the sum and loses the small terms"
    sentence = f"{node.op_type} accumulates many terms; {lost}"
    return Reason("reduction", sentence, {"significand_bits": bits})


def feeds_decomposed_norm(node: ir.Node, context: RuleContext) -> Reason | None:
    """The sum before a decomposed normalisation: a cast must not stand between them.

    ONNX Runtime fuses the normalisation together with a cast before it, and from opset 17 on refuses the
    result: its input is then in the low precision, its scale in FP32.
    """
    norms = context.graph.norms
    if context.graph.opset < 17 or node.op_type != "Add" or node.name in norms:
        return None
    for reader in readers_of(node.outputs[0]):
        if reader.op_type == "ReduceMean" and reader.name in norms:
            norm = norms[name_of(reader)]
            sentence = f"writes the input of {norm}; ONNX Runtime refuses a cast between them"
            return Reason("feeds-normalisation", sentence)
    return None


def no_low_form(node: ir.Node, context: RuleContext) -> Reason | None:
    """The operator is not defined for the low precision, or one of its tensors cannot be cast."""
    if not is_onnx_op(node) or subgraphs(node):
        return None  # another rule's
    graph, low = context.graph, context.low
    for name in (*input_names(node), *output_names(node)):
        if name and not graph.types.get(name):
            return Reason("not-a-tensor", f"{name} is a sequence or an optional, which cannot be cast")
    if accepts_low_type(node, graph.types, graph.opset, low.element):
        return None
    sentence = f"{node.op_type} of opset {graph.opset} is not defined for {low.label}"
    return Reason("no-low-form", sentence, {"opset": graph.opset})


def foreign(node: ir.Node, context: RuleContext) -> Reason | None:
    """Operators of other domains and control flow: their behaviour with another type is not known."""
    if subgraphs(node):
        return Reason("control-flow", f"{node.op_type} has subgraphs, which stay FP32")
    if is_onnx_op(node):
        return None
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Reason("unknown-operator", f"{operator} is not one of ONNX's operators: its types are not known")


def quantised(node: ir.Node, context: RuleContext) -> Reason | None:
    """Quantised regions are left as they are: from each DequantizeLinear to the next QuantizeLinear."""
    if node.op_type in (*QUANTIZE_OPS, *DEQUANTIZE_OPS):
        sentence = f"{node.op_type} belongs to a quantised region, which is left as it is"
        return Reason("quantised", sentence)
    before = [value.producer() for value in node.inputs if value is not None]
    after = [reader for value in node.outputs for reader in readers_of(value)]
    neighbours = [one for one in before if one is not None and one.op_type in DEQUANTIZE_OPS]
    neighbours += [reader for reader in after if reader.op_type in QUANTIZE_OPS]
    if not neighbours:
        return None
    where = f"{node.op_type} is connected to {neighbours[0].name}"
    return Reason("quantised", f"{where}: quantised regions are left as they are")


def mask_constant(node: ir.Node, context: RuleContext) -> Reason | None:
    """The paths of a mask constant to the softmaxes: in FP32 every sum stays as it was."""
    low = context.low
    for path in context.graph.masks:
        harmful = path.may_overflow(low) and path.constant not in context.rewritten
        if harmful and node.name in (*path.nodes, *path.softmaxes):
            return Reason(
                "mask-constant",
                f"the mask constant {path.value:.4g} ({path.constant}) passes this node on its path to "
                f"{path.softmaxes[0]}: {low.label} overflows at {low.largest:.5g}, and FP32 computes the "
                "same sums as the FP32 graph",
                {"constant": path.value, "limit": low.largest, "softmaxes": len(path.softmaxes)},
            )
    return None


def pinned(node: ir.Node, context: RuleContext) -> Reason | None:
    """The user keeps the node in FP32: a pattern matches its name, its operator or its module."""
    pattern = next((pattern for pattern in context.pins if names_node(pattern, node)), None)
    return None if pattern is None else Reason("pinned", f"--keep-fp32 {pattern} matches it")


RULES: Sequence[tuple[Rule, Strength]] = (
    (normalisation, "policy"),
    (softmax, "policy"),
    (feeds_decomposed_norm, "hard"),
    (foreign, "hard"),
    (quantised, "hard"),
    (no_low_form, "hard"),
    (mask_constant, "hard"),
    (constant_beyond_range, "hard"),
    (beyond_headroom, "hard"),
    (position, "hard"),
    (angle, "hard"),
    (guard, "hard"),
    (small_weights, "heuristic"),
    (reduction, "heuristic"),
    (pinned, "hard"),
)
"""The rules of every plan, in the order in which their reasons are listed."""


def names_node(pattern: str, node: ir.Node) -> bool:
    """Whether a pattern matches a node's name, its operator or its module.

    A module's name stands for everything inside it; its first parts may be left out
    (`encoder.layer.3.attention` for `bert.encoder.layer.3.attention`). A graph that does not record its
    modules has them in its nodes' names, between slashes.
    """
    name = name_of(node)
    module = module_of(node) or ".".join(part for part in name.split("/")[:-1] if part)
    inside = f".{pattern}." in f".{module}." or fnmatch.fnmatchcase(module, pattern)
    return inside or node.op_type == pattern or fnmatch.fnmatchcase(name, pattern)


def check_patterns(patterns: Sequence[str], nodes: Sequence[ir.Node], option: str) -> None:
    """Checks that every pattern matches a node.

    Raises:
        InputError: one matches none.
    """
    for pattern in patterns:
        if not any(names_node(pattern, node) for node in nodes):
            advice = "give a node's name, an operator or a module; * is allowed"
            raise InputError(f"'{pattern}' matches no node", option, advice)
