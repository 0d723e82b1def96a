"""Rules that look at what an operator computes."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto

from bertmp.export.graph.graph_index import GraphFacts
from bertmp.export.graph.types import FLOAT, has_low_form, is_known, subgraphs
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rules.rule import Strength


@dataclass(frozen=True)
class Normalisation:
    """Normalisations sum squares over the hidden width: FP16 sums overflow or lose their small parts."""

    strength: Strength = "principle"
    operators: tuple[str, ...] = (
        "LayerNormalization",
        "RMSNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "BatchNormalization",
        "LpNormalization",
        "MeanVarianceNormalization",
    )

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        whole = node.op_type in self.operators
        if not whole and node.name not in facts.norms:
            return None
        subject = node.op_type if whole else f"{node.op_type} is part of {facts.norms[node.name]}, which"
        return Reason(
            "normalisation",
            f"{subject} sums squares over the hidden width; {facts.low.label} sums overflow beyond "
            f"{facts.low.largest:.5g} and round away small terms",
            {"limit": facts.low.largest},
        )


@dataclass(frozen=True)
class FeedsDecomposedNorm:
    """The sum before a decomposed normalisation: a cast must not stand between them.

    ONNX Runtime fuses the normalisation together with a cast before it, and from opset 17 on refuses the
    result: its input is then low, its scale FP32.
    """

    strength: Strength = "must"

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if facts.opset < 17 or node.op_type != "Add" or node.name in facts.norms:
            return None
        for reader in facts.wiring.readers.get(node.output[0], ()):
            if reader.op_type == "ReduceMean" and reader.name in facts.norms:
                return Reason(
                    "feeds-normalisation",
                    f"writes what {facts.norms[reader.name]} normalises; ONNX Runtime refuses a cast "
                    "between them",
                )
        return None


@dataclass(frozen=True)
class Softmax:
    """Softmax exponentiates and sums: FP16 has 11 bits for terms that differ by orders of magnitude."""

    strength: Strength = "principle"
    operators: tuple[str, ...] = ("Softmax", "LogSoftmax")

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if node.op_type not in self.operators:
            return None
        bits = significand_bits(facts)
        return Reason(
            "softmax",
            f"{node.op_type} sums exponentials of very different size; {facts.low.label} keeps {bits} bits "
            "of them",
            {"significand_bits": bits},
        )


@dataclass(frozen=True)
class Reduction:
    """Sums over many elements accumulate rounding errors in 16 bits."""

    strength: Strength = "judged"
    operators: tuple[str, ...] = (
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceProd",
        "CumSum",
        "GlobalAveragePool",
    )

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if node.op_type not in self.operators:
            return None
        bits = significand_bits(facts)
        return Reason(
            "reduction",
            f"{node.op_type} accumulates many terms; {facts.low.label} keeps {bits} bits of the sum and "
            "loses the small ones",
            {"significand_bits": bits},
        )


@dataclass(frozen=True)
class NoLowForm:
    """The operator's definition has no low form, or a tensor of the node is of a kind that cannot be cast."""

    strength: Strength = "must"

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if not is_known(node) or any(subgraphs(node)):
            return None  # another rule's
        strange = [name for name in (*node.input, *node.output) if name and not facts.types.get(name)]
        if strange:
            return Reason("not-a-tensor", f"{strange[0]} is a sequence or an optional, which has no cast")
        if has_low_form(node, facts.types, facts.opset, facts.low.element):
            return None
        return Reason(
            "no-low-form",
            f"{node.op_type} of opset {facts.opset} is not defined for {facts.low.label}",
            {"opset": facts.opset},
        )


@dataclass(frozen=True)
class Foreign:
    """Operators of other domains and control flow: what they do with another type is not known."""

    strength: Strength = "must"

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if any(subgraphs(node)):
            return Reason("control-flow", f"{node.op_type} carries graphs of its own, which stay FP32 whole")
        if is_known(node):
            return None
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        return Reason("unknown-operator", f"{operator} is none of ONNX's operators: its types are not known")


@dataclass(frozen=True)
class Quantised:
    """Quantised regions are left as they are: from each DequantizeLinear to the next QuantizeLinear."""

    strength: Strength = "must"
    into: tuple[str, ...] = ("QuantizeLinear", "DynamicQuantizeLinear")
    out_of: tuple[str, ...] = ("DequantizeLinear",)

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if node.op_type in (*self.into, *self.out_of):
            return Reason(
                "quantised", f"{node.op_type} belongs to a quantised region, which is left as it is"
            )
        wiring = facts.wiring
        before = [wiring.writers[name] for name in node.input if name in wiring.writers]
        after = [reader for name in node.output for reader in wiring.readers.get(name, ())]
        for neighbour in (*before, *after):
            wanted = self.out_of if neighbour in before else self.into
            if neighbour.op_type in wanted:
                return Reason(
                    "quantised",
                    f"{node.op_type} is joined to {neighbour.name}: quantised regions are left as they are",
                )
        return None


def significand_bits(facts: GraphFacts) -> int:
    """Bits of a normal number's significand, the leading one included."""
    return {"fp16": 11, "bf16": 8}[facts.low.name]


def touches(node: NodeProto, facts: GraphFacts) -> list[str]:
    """The FP32 tensors that a node reads or writes, each once."""
    return [name for name in dict.fromkeys((*node.input, *node.output)) if facts.types.get(name) == FLOAT]
