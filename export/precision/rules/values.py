"""Rules that look at values: weights, constants, and the largest magnitudes of tensors on real inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from bertmp.export.graph.nodes import input_names, output_names
from bertmp.export.graph.types import LowType
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rules.rule import RuleContext, Strength


@dataclass(frozen=True)
class ConstantBeyondRange:
    """A weight or constant that the low precision cannot hold would become infinite.

    Attributes:
        rewritten: constants that get another value.
    """

    rewritten: frozenset[str] = frozenset()
    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        low = context.low
        for name in input_names(node):
            values = context.graph.constants.get(name)
            if values is None or values.size == 0 or name in self.rewritten:
                continue
            largest = max(float(values.max()), -float(values.min()))
            if not largest <= low.largest:  # true for NaN, too
                return Reason(
                    "constant-beyond-range",
                    f"the constant {name} reaches {largest:.4g}, beyond {low.label}'s {low.largest:.5g}",
                    {"largest": largest, "limit": low.largest},
                )
        return None


@dataclass(frozen=True)
class SmallWeights:
    """Weights so small that many become zero or subnormal: the low precision keeps few of their bits.

    The measure is the rounding error of the tensor by norm. Normal numbers keep it below the type's roundoff;
    twice that can only come from small ones.
    """

    strength: Strength = "heuristic"
    seen: dict[tuple[str, str], Reason | None] = field(default_factory=dict, repr=False, compare=False)

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        for name in input_names(node):
            if name not in context.graph.constants:
                continue
            key = (name, context.low.name)
            if key not in self.seen:
                self.seen[key] = self._judge(name, context.graph.constants[name], context.low)
            if self.seen[key] is not None:
                return self.seen[key]
        return None

    @staticmethod
    def _judge(name: str, values: np.ndarray, low: LowType) -> Reason | None:
        limit = 2 * low.roundoff
        flat = values.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.sqrt(np.dot(flat, flat)))
        smallest = low.smallest_normal * low.roundoff
        # A bound on what underflow can add to the error: most tensors need not be rounded.
        if norm == 0 or not np.isfinite(norm) or smallest * flat.size**0.5 < low.roundoff * norm:
            return None
        rounded = low.rounded(flat).astype(np.float32)
        error = float(np.linalg.norm((rounded - flat).astype(np.float64)) / norm)
        if not error > limit:
            return None
        magnitudes = np.abs(flat[flat != 0])
        zeroed = float(np.mean(rounded[flat != 0] == 0))
        subnormal = float(np.mean(magnitudes < low.smallest_normal))
        return Reason(
            "small-weights",
            f"{low.label} changes the weights {name} by {error:.2g} of their norm: {subnormal:.0%} of them "
            f"lie below its smallest normal number {low.smallest_normal:.2g}, {zeroed:.0%} become zero",
            {"relative_error": error, "limit": limit, "subnormal_share": subnormal, "zeroed_share": zeroed},
        )


@dataclass(frozen=True)
class BeyondHeadroom:
    """A tensor that the node reads or writes and that on real inputs comes within the headroom of overflow.

    Attributes:
        rewritten: constants that get another value; the tensors on their paths have other ranges then.
    """

    rewritten: frozenset[str] = frozenset()
    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        if not context.largest:
            return None
        low, graph = context.low, context.graph
        changed = {name for path in graph.masks if path.constant in self.rewritten for name in path.tensors}
        measured = [
            (context.largest[name], name)
            for name in graph.fp32_tensors(node)
            if name in context.largest and name not in changed
        ]
        largest, name = max(measured, default=(0.0, ""))
        if largest * context.headroom <= low.largest:
            return None
        headroom = low.largest / largest
        does = "writes" if name in output_names(node) else "reads"
        return Reason(
            "range",
            f"{does} {name}, which reaches {largest:.4g} on real inputs: {low.label}'s largest number, "
            f"{low.largest:.5g}, is {headroom:.2g} times that, and at least {context.headroom:g} times is "
            "required",
            {"largest": largest, "headroom": headroom, "wanted": context.headroom},
        )


@dataclass(frozen=True)
class MaskConstant:
    """The paths of a mask constant to the softmaxes: in FP32 every sum stays as it was.

    Attributes:
        rewritten: constants that get another value.
    """

    rewritten: frozenset[str] = frozenset()
    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        low = context.low
        for path in context.graph.masks:
            harmful = path.may_overflow(low) and path.constant not in self.rewritten
            if harmful and node.name in (*path.nodes, *path.softmaxes):
                return Reason(
                    "mask-constant",
                    f"the mask constant {path.value:.4g} ({path.constant}) passes this node on its path to "
                    f"{path.softmaxes[0]}: {low.label} overflows at {low.largest:.5g}, and FP32 computes the "
                    "same sums as the FP32 graph",
                    {"constant": path.value, "limit": low.largest, "softmaxes": len(path.softmaxes)},
                )
        return None
