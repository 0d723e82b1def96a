"""The reasons to keep a node in FP32: one small class each, which returns the reason or None."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import NodeProto

from bertmp.export.graph import module_of
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.types import FP16_MAX, has_fp16_form


@dataclass(frozen=True)
class GraphFacts:
    """What the rules may look at beside the node.

    Attributes:
        types: tensor name → element type.
        constants: initializer and constant name → its FP32 values.
        opset: the version of ONNX's operator set.
    """

    types: Mapping[str, int]
    constants: Mapping[str, np.ndarray]
    opset: int


class Rule(Protocol):
    """A reason to keep nodes in FP32."""

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        """Why `node` must stay FP32; None where this rule has nothing against FP16."""


@dataclass(frozen=True)
class Normalisation:
    """Normalisations sum squares over the hidden width: FP16 sums overflow or lose their small parts."""

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
        if node.op_type not in self.operators:
            return None
        return Reason(
            "normalisation",
            f"{node.op_type} sums squares over the hidden width; FP16 sums overflow beyond {FP16_MAX:.0f} "
            "and round away small terms",
            {"fp16_max": FP16_MAX},
        )


@dataclass(frozen=True)
class Softmax:
    """Softmax exponentiates and sums: FP16 has 11 bits for terms that differ by orders of magnitude."""

    operators: tuple[str, ...] = ("Softmax", "LogSoftmax")

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if node.op_type not in self.operators:
            return None
        return Reason(
            "softmax",
            f"{node.op_type} sums exponentials of very different size; FP16 keeps 11 bits of them",
            {"fp16_significand_bits": 11},
        )


@dataclass(frozen=True)
class Reduction:
    """Sums over many elements accumulate rounding errors in FP16."""

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
    )

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if node.op_type not in self.operators:
            return None
        return Reason("reduction", f"{node.op_type} accumulates many terms; FP16 loses the small ones")


@dataclass(frozen=True)
class ConstantBeyondRange:
    """A weight or constant that FP16 cannot hold would become infinite."""

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        for name in node.input:
            values = facts.constants.get(name)
            if values is None or values.size == 0:
                continue
            largest = float(np.abs(values).max())
            if not largest <= FP16_MAX:
                return Reason(
                    "constant-beyond-range",
                    f"the constant {name} reaches {largest:.4g}, beyond FP16's {FP16_MAX:.0f}",
                    {"largest": largest, "fp16_max": FP16_MAX},
                )
        return None


@dataclass(frozen=True)
class NoFp16Form:
    """The operator's definition has no FP16."""

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if has_fp16_form(node, dict(facts.types), facts.opset):
            return None
        return Reason("no-fp16-form", f"{node.op_type} of opset {facts.opset} is not defined for FP16")


@dataclass(frozen=True)
class Pinned:
    """The user said so: a pattern that matches the node's name, its operator or its module.

    A module's name stands for everything inside it; it may leave out its first parts
    (`encoder.layer.3.attention` for `bert.encoder.layer.3.attention`).
    """

    patterns: Sequence[str]

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        for pattern in self.patterns:
            if self.matches(pattern, node):
                return Reason("pinned", f"--keep-fp32 {pattern} names it")
        return None

    @staticmethod
    def matches(pattern: str, node: NodeProto) -> bool:
        """Whether a pattern names a node."""
        module = f".{module_of(node)}."
        inside = f".{pattern}." in module or fnmatch.fnmatchcase(module_of(node), pattern)
        return inside or node.op_type == pattern or fnmatch.fnmatchcase(node.name, pattern)


def standard_rules(pins: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules that every plan starts from, and the user's pins."""
    rules: tuple[Rule, ...] = (Normalisation(), Softmax(), Reduction(), ConstantBeyondRange(), NoFp16Form())
    return (*rules, Pinned(tuple(pins))) if pins else rules
