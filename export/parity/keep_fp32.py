"""Which nodes in FP32 repair a 16-bit graph: tried, from the smallest set to the largest."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from bertmp.export.export_options import PrecisionOptions
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import input_names, module_path, name_of
from bertmp.export.graph.types import FLOAT, LowType, element_types
from bertmp.export.graph.weights import tensor_values
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import PrecisionPlan, Rewrite
from bertmp.export.precision.planner import Planner
from bertmp.export.precision.rules import names_node

_STEPS = 3
"""How many nodes back what a node reads is made FP32, too."""

_NEAR_BEST = 2.0
"""The smallest set is taken whose error is at most this times that of the largest."""


@dataclass(frozen=True)
class KeepFp32:
    """Nodes that were kept in FP32, and what became of the error.

    Attributes:
        patterns: for `--keep-fp32`, each a node, a module or an operator.
        error_before, error_after: the largest change of any output value against FP32, without and with them;
            infinite where one is not finite.
        repairs: whether the error is finite with them, and at most half of what it was.
    """

    patterns: tuple[str, ...]
    error_before: float
    error_after: float
    repairs: bool

    @property
    def line(self) -> str:
        """The options, as they are typed."""
        return " ".join(f"--keep-fp32 {shlex.quote(pattern)}" for pattern in self.patterns)


def try_keeping_fp32(
    reference: ModelProto,
    other: ModelProto,
    low: LowType,
    wrong: Sequence[str],
    blocks: Mapping[str, str],
    examples: Calibration,
) -> KeepFp32 | None:
    """Converts the reference as the other graph was, with more and more nodes in FP32, and measures each.

    Args:
        reference: the FP32 graph.
        other: a 16-bit graph made from it, by whatever tool.
        low: its 16-bit type.
        wrong: nodes whose error jumps, in graph order.
        blocks: node name → block.
        examples: what is run.

    Returns:
        The smallest set that is about as good as the largest; None where all of `wrong` are in FP32 already,
        or the fault is not one of precision.
    """
    index, evaluator = GraphIndex(reference), Evaluator(reference, examples)
    plan = plan_of(reference, other, low)
    lowered = {node.name for node in plan.nodes if node.precision == low.name}
    before = evaluator.compare(other).max_error
    candidates: dict[frozenset[str], tuple[str, ...]] = {}  # what each set puts into FP32 → its first name
    for patterns in _candidates(index, wrong, blocks, lowered):
        candidates.setdefault(frozenset(lowered & _matching(patterns, index)), patterns)
    candidates.pop(frozenset(), None)
    # Where the same precisions of the reference are right, it is other weights or another operator.
    if not candidates or _halves(evaluator.measure(plan).max_error, before):
        return None

    def error_with(names: Collection[str]) -> float:
        return evaluator.measure(plan.with_precision(names, "fp32")).max_error

    *smaller, largest = candidates
    best = error_with(largest)
    chosen, after = largest, best
    for names in smaller:
        error = error_with(names)
        if np.isfinite(error) and error <= _NEAR_BEST * best:
            chosen, after = names, error
            break
    return KeepFp32(candidates[chosen], before, after, _halves(after, before))


def _halves(after: float, before: float) -> bool:
    return bool(np.isfinite(after)) and after <= before / 2


def plan_of(reference: ModelProto, other: ModelProto, low: LowType) -> PrecisionPlan:
    """The plan that a 16-bit graph follows, as its own types and constants say."""
    plan = Planner(reference, PrecisionOptions(precision=low.name)).plan()  # type: ignore[arg-type]
    types, index = element_types(other), GraphIndex(reference)
    theirs = {node.name: node for node in other.graph.node}
    placed = {node.name for node in plan.nodes if node.precision != "integer" and node.name in theirs}
    runs_low = {name for name in placed if any(types.get(out) == low.element for out in theirs[name].output)}
    plan = plan.with_precision(runs_low, low.name)  # type: ignore[arg-type]
    plan = plan.with_precision(placed - runs_low, "fp32")
    constants = {tensor.name: tensor for tensor in other.graph.initializer}
    rewrites = []
    for path in index.masks:
        stored = constants.get(path.constant) or constants.get(f"{path.constant}/{low.name}")
        if stored is None:
            continue
        after = float(np.asarray(tensor_values(stored), np.float64).min())
        if after != path.value and np.isfinite(after):
            rewrites.append(Rewrite(path.constant, path.value, after, "as the graph has it"))
    return replace(plan, rewrites=tuple(rewrites))


def _candidates(
    index: GraphIndex, wrong: Sequence[str], blocks: Mapping[str, str], lowered: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """Sets of patterns, from the first wrong node to its block and everything else that is wrong."""
    block, inside = blocks[wrong[0]], [name for name in wrong if blocks[name] == blocks[wrong[0]]]
    elsewhere = [name for name in wrong if blocks[name] != block]
    for start in ([wrong[0]], inside):
        for steps in range(_STEPS + 1):
            chosen = _with_producers(index, start, steps)
            yield tuple(name for name in chosen if name in lowered and blocks[name] == block)
    first = next(node for node in index.nodes if name_of(node) == wrong[0])
    module = ".".join(module_path(first))
    modules = [name for name in (module, block) if name and any(names_node(name, n) for n in index.nodes)]
    for name in modules:
        yield (name,)
    rest = [name for name in _with_producers(index, elsewhere, _STEPS) if name in lowered]
    yield (*(modules[-1:] or inside), *(name for name in rest if blocks[name] != block))


def _with_producers(index: GraphIndex, names: Sequence[str], steps: int) -> list[str]:
    """The nodes, and those that write what they read, so many steps back; in graph order."""
    chosen = set(names)
    for _ in range(steps):
        read = {one for node in index.nodes if name_of(node) in chosen for one in input_names(node)}
        writers = (index.producer(name) for name in read if index.types.get(name) == FLOAT)
        chosen |= {name_of(node) for node in writers if node is not None}
    return [name_of(node) for node in index.nodes if name_of(node) in chosen]


def _matching(patterns: Sequence[str], index: GraphIndex) -> set[str]:
    return {name_of(node) for node in index.nodes if any(names_node(pattern, node) for pattern in patterns)}
