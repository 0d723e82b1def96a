"""The precision plan as data: per node its precision and every reason for FP32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertmp.errors import InputError
from bertmp.files import read_json, write_json

FORMAT = 1
CAST_PREFIX = "precision_cast/"
"""Names of the casts that the conversion inserts begin with this; every other node keeps its name."""

Precision = Literal["fp16", "fp32", "integer"]


@dataclass(frozen=True)
class Reason:
    """Why a node runs in FP32.

    Attributes:
        rule: the rule's name, e.g. `softmax`.
        sentence: the reason in words, complete by itself.
        numbers: what the rule looked at, by name.
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
        precision: `fp16` or `fp32`; `integer` where the node touches no floating-point tensor.
        reasons: why it is FP32; empty otherwise.
    """

    name: str
    op: str
    module: str
    precision: Precision
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class PrecisionPlan:
    """A plan for one graph.

    Attributes:
        graph_sha256: fingerprint of the FP32 graph that the plan is for.
        nodes: every node, in graph order.
    """

    graph_sha256: str
    nodes: tuple[NodePlan, ...]

    def kept_fp32(self) -> list[NodePlan]:
        """The nodes that stay FP32."""
        return [node for node in self.nodes if node.precision == "fp32"]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "graph_sha256": self.graph_sha256,
            "nodes": [asdict(node) for node in self.nodes],
        }

    def save(self, path: Path) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> PrecisionPlan:
        """Reads a plan.

        Errors: InputError where the file is missing, no plan, or of another format.
        """
        data = read_json(path)
        try:
            if data["format"] != FORMAT:
                raise KeyError("format")
            nodes = tuple(
                NodePlan(**{**node, "reasons": tuple(Reason(**reason) for reason in node["reasons"])})
                for node in data["nodes"]
            )
            return cls(data["graph_sha256"], nodes)
        except (KeyError, TypeError) as error:
            raise InputError(
                "not a precision plan", path, "make one with 'bertmp export' or 'bertmp convert'"
            ) from error
