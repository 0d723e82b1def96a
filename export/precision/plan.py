"""The precision plan as data: for every node its precision and every reason for FP32.

A plan is made once, printed, edited and applied; this module knows no graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError

from bertmp.core.errors import InputError
from bertmp.core.io import plain, read_json, write_json
from bertmp.export.export_options import Target

FORMAT = 2
CAST_PREFIX = "precision_cast/"
"""Names of the casts that the conversion inserts begin with this; every other node keeps its name."""

Precision = Literal["fp16", "bf16", "fp32", "integer"]


@dataclass(frozen=True)
class Reason:
    """Why a node runs in FP32.

    Attributes:
        rule: the rule's name, e.g. `softmax`.
        sentence: the reason in words.
        numbers: the values behind it, by name; may be infinite.
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
        error: the largest change of any output value when this node, together with the nodes of its block
            that have the same reason, runs in the low precision and all else in FP32; None if not measured.
    """

    name: str
    op: str
    module: str
    precision: Precision
    reasons: tuple[Reason, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Rewrite:
    """A mask constant that the conversion replaces.

    Attributes:
        tensor: the initializer's or Constant node's output's name.
        before, after: its extreme value and what stands in its place; `before` may be −inf.
        justification: why the result stays the same, with the numbers behind it; `proof` in version 0.1.
    """

    tensor: str
    before: float
    after: float
    justification: Annotated[str, Field(validation_alias=AliasChoices("justification", "proof"))]


@dataclass(frozen=True)
class RangeRecord:
    """Which ranges the plan was made with.

    Attributes:
        source: `calibration` where the graph was run on examples, `vocabulary` where on inputs made from the
            vocabulary, `training` where training recorded them.
        file: the file of examples or of recorded ranges; for `vocabulary` the name of the tokenizer's file,
            or of the table of embeddings.
        sha256: of that file; empty for a table.
        texts: how many examples were run; 0 for `training`.
        blocks: block → headroom, the target's largest number over the block's largest magnitude.
    """

    source: Literal["calibration", "vocabulary", "training"]
    file: str
    sha256: str
    texts: int
    blocks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchStep:
    """One point of the curve error against number of FP32 nodes.

    Attributes:
        fp32_nodes: FP32 nodes at this step.
        error: largest change of any output value on the calibration examples.
        flips: examples whose label changed.
        changed: what was promoted or demoted in this step.
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
        error, label_flips: of the final plan, on `texts` examples.
        steps: the plans measured on the way.
        bound_by: the node that prevents the budget from being met; None where it is met.
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
        target: the low precision.
        headroom: the factor by which tensors in the low precision stay below its largest number.
        rewrites: constants that the conversion replaces.
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
            reason: added to the reasons of an FP32 node; a node in the low precision has none.

        Raises:
            InputError: the plan has no node of a name.
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
        return dict(plain({"format": FORMAT, **asdict(self)}))

    def save(self, path: Path) -> None:
        """Writes the plan as JSON, completely or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> PrecisionPlan:
        """Reads a plan, perhaps edited by hand.

        Raises:
            InputError: the file is missing, not a plan, of another format, damaged, or names a precision that
                its target does not allow.
        """
        todo = "make one with 'bertmp export' or 'bertmp convert'"
        data = read_json(path)
        if not isinstance(data, dict) or "graph_sha256" not in data:
            raise InputError("not a precision plan", path, todo)
        if data.pop("format", None) != FORMAT:
            raise InputError(f"not a precision plan of format {FORMAT}", path, todo)
        try:
            plan = TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            what = f"a damaged precision plan: {where}: {first['msg']}"
            raise InputError(what, path, f"fix it or {todo}") from error
        for node in plan.nodes:
            if node.precision not in (plan.target, "fp32", "integer"):
                what = f"node '{node.name}' has the precision '{node.precision}'"
                raise InputError(what, path, f"use {plan.target} or fp32")
        return plan
