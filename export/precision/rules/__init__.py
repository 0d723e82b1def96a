"""The rules that keep nodes in FP32: one small class each, which returns the reason or None."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bertmp.export.precision.rules.operators import (
    FeedsDecomposedNorm,
    Foreign,
    NoLowForm,
    Normalisation,
    Quantised,
    Reduction,
    Softmax,
)
from bertmp.export.precision.rules.pins import Pinned, check_patterns, names_node
from bertmp.export.precision.rules.rule import Rule, RuleContext, Strength
from bertmp.export.precision.rules.values import (
    BeyondHeadroom,
    ConstantBeyondRange,
    MaskConstant,
    SmallWeights,
)

__all__ = ["Rule", "RuleContext", "Strength", "check_patterns", "names_node", "standard_rules"]


def standard_rules(pins: Sequence[str] = (), rewritten: Collection[str] = ()) -> tuple[Rule, ...]:
    """The rules of every plan, in the order in which their reasons are listed, and the user's pins.

    Args:
        rewritten: mask constants that get another value.
    """
    rewritten = frozenset(rewritten)
    rules: tuple[Rule, ...] = (
        Normalisation(),
        Softmax(),
        FeedsDecomposedNorm(),
        Foreign(),
        Quantised(),
        NoLowForm(),
        MaskConstant(rewritten),
        ConstantBeyondRange(rewritten),
        BeyondHeadroom(rewritten),
        SmallWeights(),
        Reduction(),
    )
    return (*rules, Pinned(tuple(pins))) if pins else rules
