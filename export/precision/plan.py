"""The precision plan as data: per node its precision and every reason for FP32.

A plan is made once, printed, edited and applied; nothing here looks at a graph.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, write_json

FORMAT = 2
CAST_PREFIX = "precision_cast/"
"""Names of the casts that the conversion inserts begin with this; every other node keeps its name."""

Precision = Literal["fp16", "bf16", "fp32", "integer"]
Target = Literal["fp16", "bf16"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Reason:
    """Why a node runs in FP32.

    Attributes:
        rule: the rule's name, e.g. `softmax`.
        sentence: the reason in words, complete by itself.
        numbers: what the rule looked at, by name; may be infinite.
    """

    rule: str
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NodePlan:
    """One node of the FP32 graph.

    Attributes:
        name: the ONNX node's name, the same in both graphs.
        op: its operator type.
        module: the module it came from, e.g. `bert.encoder.layer.3.attention.self`; empty where unknown.
        precision: `fp32`, or the plan's target; `integer` where the node touches no FP32 tensor.
        reasons: why it is FP32; empty otherwise.
        error: the largest change of any output value when this node, with what the same reason binds to
            it, runs in the low type and all else in FP32; None where it was not measured.
    """

    name: str
    op: str
    module: str
    precision: Precision
    reasons: tuple[Reason, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Rewrite:
    """A constant that the mask pass replaces.

    Attributes:
        tensor: the initializer's or Constant node's output's name.
        before, after: its extreme value and what stands in its place; `before` may be −inf.
        proof: why the result is the same, in words, with the numbers that it stands on.
    """

    tensor: str
    before: float
    after: float
    proof: str


@dataclass(frozen=True)
class RangeRecord:
    """Which ranges the plan was made with.

    Attributes:
        source: `calibration` where the graph was run on texts, `training` where training recorded them.
        file: the file of texts or of recorded ranges.
        sha256: of that file.
        texts: how many texts were run; 0 for `training`.
        blocks: block → headroom, the target's largest number over the block's largest magnitude.
    """

    source: Literal["calibration", "training"]
    file: str
    sha256: str
    texts: int
    blocks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchStep:
    """One point of the curve error against number of FP32 nodes.

    Attributes:
        fp32_nodes: FP32 nodes at this step.
        error: largest change of any output value on the calibration texts.
        flips: texts whose label changed.
        changed: what was raised or dropped to come here.
    """

    fp32_nodes: int
    error: float
    flips: int
    changed: str


@dataclass(frozen=True)
class SearchRecord:
    """What the search by measured error found.

    Attributes:
        max_error: the budget; None where none was given and the error was only measured.
        error, label_flips: of the final plan, on `texts` texts.
        steps: the way to it.
        bound_by: the node that keeps the budget from being met; None where it is met.
    """

    max_error: float | None
    error: float
    label_flips: int
    texts: int
    steps: tuple[SearchStep, ...] = ()
    bound_by: str | None = None


@dataclass(frozen=True)
class PrecisionPlan:
    """A plan for one graph.

    Attributes:
        graph_sha256: fingerprint of the FP32 graph that the plan is for.
        nodes: every node, in graph order.
        target: the low type.
        headroom: the factor by which tensors in the low type stay below its largest number.
        rewrites: constants that applying the plan replaces.
        ranges: the measured ranges behind it; None where it was made without.
        search: the measured error; None where it was not measured.
    """

    graph_sha256: str
    nodes: tuple[NodePlan, ...]
    target: Target = "fp16"
    headroom: float = 4.0
    rewrites: tuple[Rewrite, ...] = ()
    ranges: RangeRecord | None = None
    search: SearchRecord | None = None

    def kept_fp32(self) -> list[NodePlan]:
        """The nodes that stay FP32."""
        return [node for node in self.nodes if node.precision == "fp32"]

    def counts(self) -> dict[str, int]:
        """Precision → number of nodes, for the target, `fp32` and `integer`."""
        kinds = (self.target, "fp32", "integer")
        return {kind: sum(node.precision == kind for node in self.nodes) for kind in kinds}

    def with_precision(
        self, names: Collection[str], precision: Precision, reason: Reason | None = None
    ) -> PrecisionPlan:
        """The plan with the named nodes in another precision.

        Args:
            reason: added to what an FP32 node has already; a node in the low type has none.

        Errors: InputError for a name that the plan does not have.
        """
        unknown = set(names) - {node.name for node in self.nodes}
        if unknown:
            raise InputError(f"the plan has no node '{min(unknown)}'", todo="name one of the plan's nodes")

        def changed(node: NodePlan) -> NodePlan:
            kept = node.reasons if precision == "fp32" else ()
            return replace(node, precision=precision, reasons=kept + ((reason,) if reason else ()))

        nodes = tuple(changed(node) if node.name in set(names) else node for node in self.nodes)
        return replace(self, nodes=nodes)

    def digest(self) -> str:
        """SHA-256 of what applying the plan depends on: neither reasons nor measurements."""
        content = [
            self.graph_sha256,
            self.target,
            [(node.name, node.precision) for node in self.nodes],
            [(rewrite.tensor, rewrite.after) for rewrite in self.rewrites],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = _without_infinities({"format": FORMAT, **asdict(self)})
        return plain

    def save(self, path: Path) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> PrecisionPlan:
        """Reads a plan.

        Errors: InputError where the file is missing, no plan, of another format or edited wrongly.
        """
        todo = "make one with 'bertmp export' or 'bertmp convert'"
        data = read_json(path)
        if not isinstance(data, dict) or "graph_sha256" not in data:
            raise InputError("not a precision plan", path, todo)
        if data.get("format") != FORMAT:
            raise InputError(f"a precision plan of format {data.get('format')}, not {FORMAT}", path, todo)
        try:
            plan = _plan_from(data)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("a damaged precision plan", path, f"mend it ({error}) or {todo}") from error
        _check(plan, path)
        return plan


def _check(plan: PrecisionPlan, path: Path) -> None:
    """Errors: InputError for a precision that the plan's target does not know: plans are edited by hand."""
    if plan.target not in TARGETS:
        raise InputError(f"unknown target '{plan.target}'", path, f"use {' or '.join(TARGETS)}")
    allowed = {plan.target, "fp32", "integer"}
    for node in plan.nodes:
        if node.precision not in allowed:
            raise InputError(
                f"node '{node.name}' has the precision '{node.precision}'", path, f"use {plan.target} or fp32"
            )


def _plan_from(data: Mapping[str, Any]) -> PrecisionPlan:
    ranges, search = data["ranges"], data["search"]
    return PrecisionPlan(
        graph_sha256=data["graph_sha256"],
        nodes=tuple(_node_from(node) for node in data["nodes"]),
        target=data["target"],
        headroom=float(data["headroom"]),
        rewrites=tuple(
            Rewrite(**{**item, "before": float(item["before"]), "after": float(item["after"])})
            for item in data["rewrites"]
        ),
        ranges=RangeRecord(**{**ranges, "blocks": _floats(ranges["blocks"])}) if ranges else None,
        search=_search_from(search) if search else None,
    )


def _node_from(data: Mapping[str, Any]) -> NodePlan:
    reasons = tuple(
        Reason(**{**reason, "numbers": _floats(reason.get("numbers", {}))})
        for reason in data.get("reasons", ())
    )
    error = data.get("error")
    return NodePlan(**{**data, "reasons": reasons, "error": None if error is None else float(error)})


def _search_from(data: Mapping[str, Any]) -> SearchRecord:
    steps = tuple(SearchStep(**{**step, "error": float(step["error"])}) for step in data["steps"])
    return SearchRecord(**{**data, "error": float(data["error"]), "steps": steps})


def _floats(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items()}


def _without_infinities(value: Any) -> Any:
    """JSON has no infinity: written as the text `inf`, `-inf` or `nan`, which `float` reads again."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(item) for item in value]
    return value
