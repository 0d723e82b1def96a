"""Rules that look at values: weights, constants, and what tensors become on real text."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from bertmp.export.graph.graph_index import GraphFacts
from bertmp.export.graph.types import LowType
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rules.operators import touches
from bertmp.export.precision.rules.rule import Strength


@dataclass(frozen=True)
class ConstantBeyondRange:
    """A weight or constant that the low type cannot hold would become infinite.

    Attributes:
        rewritten: constants that get another value instead.
    """

    rewritten: frozenset[str] = frozenset()
    strength: Strength = "must"

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        for name in node.input:
            values = facts.constants.get(name)
            if values is None or values.size == 0 or name in self.rewritten:
                continue
            largest = max(float(values.max()), -float(values.min()))
            if not largest <= facts.low.largest:  # neither is NaN
                return Reason(
                    "constant-beyond-range",
                    f"the constant {name} reaches {largest:.4g}, beyond {facts.low.label}'s "
                    f"{facts.low.largest:.5g}",
                    {"largest": largest, "limit": facts.low.largest},
                )
        return None


@dataclass(frozen=True)
class SmallWeights:
    """Weights that lie so low that many become zero or subnormal: the low type keeps few of their bits.

    The measure is the rounding error of the whole tensor by norm. Normal numbers keep it below the type's
    roundoff; twice that can only come from small ones.
    """

    strength: Strength = "judged"
    seen: dict[tuple[str, str], Reason | None] = field(default_factory=dict, repr=False, compare=False)

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        for name in node.input:
            if name not in facts.constants:
                continue
            key = (name, facts.low.name)
            if key not in self.seen:
                self.seen[key] = self._judge(name, facts.constants[name], facts.low)
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
        # What underflow can add to the error, against what it must reach: spares most tensors the rounding.
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
    """A tensor that on real text comes within the headroom of overflow, read or written by the node.

    Attributes:
        rewritten: constants that get another value instead; what they passed through has other ranges now.
    """

    rewritten: frozenset[str] = frozenset()
    strength: Strength = "must"

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        if not facts.largest:
            return None
        changed = {name for path in facts.masks if path.constant in self.rewritten for name in path.tensors}
        names = [name for name in touches(node, facts) if name in facts.largest and name not in changed]
        measured = [(facts.largest[name], name) for name in names]
        largest, name = max(measured, default=(0.0, ""))
        if largest * facts.headroom <= facts.low.largest:
            return None
        headroom = facts.low.largest / largest
        does = "writes" if name in node.output else "reads"
        return Reason(
            "range",
            f"{does} {name}, which reaches {largest:.4g} on real text: {facts.low.label}'s largest number, "
            f"{facts.low.largest:.5g}, is {headroom:.2g} times that, and {facts.headroom:g} times is wanted",
            {"largest": largest, "headroom": headroom, "wanted": facts.headroom},
        )


@dataclass(frozen=True)
class MaskConstant:
    """The ways of a mask constant to the softmaxes: in FP32 every sum is what it was.

    Attributes:
        rewritten: constants that get another value instead.
    """

    rewritten: frozenset[str] = frozenset()
    strength: Strength = "must"

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        for path in facts.masks:
            harmful = path.harms(facts.low) and path.constant not in self.rewritten
            if harmful and node.name in (*path.nodes, *path.softmaxes):
                return Reason(
                    "mask-constant",
                    f"the mask constant {path.value:.4g} ({path.constant}) passes here on its way to "
                    f"{path.softmaxes[0]}: {facts.low.label} overflows at {facts.low.largest:.5g}, FP32 "
                    "gives the very sums of the FP32 graph",
                    {"constant": path.value, "limit": facts.low.largest, "softmaxes": len(path.softmaxes)},
                )
        return None
