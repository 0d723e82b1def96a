"""Rules that look at what an operator computes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bertmp.export.graph.nodes import (
    DEQUANTIZE_OPS,
    NORMALISATION_OPS,
    QUANTIZE_OPS,
    REDUCTION_OPS,
    SOFTMAX_OPS,
    input_names,
    is_onnx_op,
    name_of,
    output_names,
    readers_of,
    subgraphs,
)
from bertmp.export.graph.types import accepts_low_type
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rules.rule import RuleContext, Strength


@dataclass(frozen=True)
class Normalisation:
    """Normalisations sum squares over the hidden width: FP16 sums overflow or lose their small parts."""

    strength: Strength = "policy"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        part_of = context.graph.norms.get(name_of(node))
        if node.op_type not in NORMALISATION_OPS and part_of is None:
            return None
        low = context.low
        subject = f"{node.op_type} is part of {part_of}, which" if part_of else node.op_type
        return Reason(
            "normalisation",
            f"{subject} sums squares over the hidden width; {low.label} sums overflow beyond "
            f"{low.largest:.5g} and round away small terms",
            {"limit": low.largest},
        )


@dataclass(frozen=True)
class FeedsDecomposedNorm:
    """The sum before a decomposed normalisation: a cast must not stand between them.

    ONNX Runtime fuses the normalisation together with a cast before it, and from opset 17 on refuses the
    result: its input is then in the low precision, its scale in FP32.
    """

    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        norms = context.graph.norms
        if context.graph.opset < 17 or node.op_type != "Add" or node.name in norms:
            return None
        for reader in readers_of(node.outputs[0]):
            if reader.op_type == "ReduceMean" and reader.name in norms:
                return Reason(
                    "feeds-normalisation",
                    f"writes the input of {norms[name_of(reader)]}; ONNX Runtime refuses a cast between them",
                )
        return None


@dataclass(frozen=True)
class Softmax:
    """Softmax exponentiates and sums: FP16 has 11 bits for terms that differ by orders of magnitude."""

    strength: Strength = "policy"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        if node.op_type not in SOFTMAX_OPS:
            return None
        low = context.low
        return Reason(
            "softmax",
            f"{node.op_type} sums exponentials of very different size, of which {low.label} keeps "
            f"{low.significand_bits} bits",
            {"significand_bits": low.significand_bits},
        )


@dataclass(frozen=True)
class Reduction:
    """Sums over many elements accumulate rounding errors in 16 bits."""

    strength: Strength = "heuristic"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        if node.op_type not in REDUCTION_OPS:
            return None
        low = context.low
        return Reason(
            "reduction",
            f"{node.op_type} accumulates many terms; {low.label} keeps {low.significand_bits} bits of the "
            "sum and loses the small terms",
            {"significand_bits": low.significand_bits},
        )


@dataclass(frozen=True)
class NoLowForm:
    """The operator is not defined for the low precision, or one of its tensors cannot be cast."""

    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        if not is_onnx_op(node) or subgraphs(node):
            return None  # another rule's
        graph = context.graph
        for name in (*input_names(node), *output_names(node)):
            if name and not graph.types.get(name):
                return Reason("not-a-tensor", f"{name} is a sequence or an optional, which cannot be cast")
        if accepts_low_type(node, graph.types, graph.opset, context.low.element):
            return None
        return Reason(
            "no-low-form",
            f"{node.op_type} of opset {graph.opset} is not defined for {context.low.label}",
            {"opset": graph.opset},
        )


@dataclass(frozen=True)
class Foreign:
    """Operators of other domains and control flow: their behaviour with another type is not known."""

    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        if subgraphs(node):
            return Reason("control-flow", f"{node.op_type} has subgraphs, which stay FP32")
        if is_onnx_op(node):
            return None
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        return Reason(
            "unknown-operator", f"{operator} is not one of ONNX's operators: its types are not known"
        )


@dataclass(frozen=True)
class Quantised:
    """Quantised regions are left as they are: from each DequantizeLinear to the next QuantizeLinear."""

    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        if node.op_type in (*QUANTIZE_OPS, *DEQUANTIZE_OPS):
            return Reason(
                "quantised", f"{node.op_type} belongs to a quantised region, which is left as it is"
            )
        before = [value.producer() for value in node.inputs if value is not None]
        neighbours = [one for one in before if one is not None and one.op_type in DEQUANTIZE_OPS]
        neighbours += [
            reader for value in node.outputs for reader in readers_of(value) if reader.op_type in QUANTIZE_OPS
        ]
        if not neighbours:
            return None
        return Reason(
            "quantised",
            f"{node.op_type} is connected to {neighbours[0].name}: quantised regions are left as they are",
        )
