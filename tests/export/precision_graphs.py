"""Small graphs for the precision planner, made operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bertmp.export.export_options import HEADROOM, PrecisionOptions, Target
from bertmp.export.precision.plan import PrecisionPlan
from bertmp.export.precision.planner import Planner
from bertmp.export.precision.ranges import Ranges

WIDTH = 8


@dataclass
class Builder:
    """A graph in the making: every method adds a node or a weight and returns its output's name."""

    seed: int = 0
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """An initializer."""
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def drawn(self, *shape: int, scale: float = 1.0) -> str:
        """A random weight."""
        return self.constant(self.rng.normal(size=shape) * scale)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node named `nNUMBER_OP` that writes `tNUMBER`."""
        number = len(self.nodes)
        out = attributes.pop("out", f"t{number}")
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"n{number}_{op}", **attributes))
        return str(out)

    def norm(self, x: str) -> str:
        return self.node("LayerNormalization", x, self.drawn(WIDTH), self.drawn(WIDTH), axis=-1)

    def product(self, x: str, scale: float = 0.4) -> str:
        return self.node("MatMul", x, self.drawn(WIDTH, WIDTH, scale=scale))

    def softmax(self, x: str) -> str:
        return self.node("Softmax", x, axis=-1)

    def model(
        self,
        *outputs: str,
        inputs: Sequence[ValueInfoProto] | None = None,
        shape: Sequence[int | str] = ("batch", WIDTH),
        opset: int = 18,
        domains: Sequence[str] = (),
    ) -> ModelProto:
        """The model; its input is `x`, FP32 of `shape`, unless others are given."""
        given = inputs or [tensor("x", shape)]
        made = [tensor(name, None if inputs else shape) for name in outputs]
        graph = helper.make_graph(self.nodes, "small", given, made, self.weights)
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def tensor(name: str, shape: Sequence[int | str] | None, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def chain(operators: Sequence[str], seed: int = 0, scale: float = 0.4) -> ModelProto:
    """A chain of encoder operators over `x`, FP32 `[batch, WIDTH]`; `Residual` adds what stood two before."""
    g = Builder(seed)
    tensors = ["x"]
    for operator in operators:
        last = tensors[-1]
        if operator == "MatMul":
            tensors.append(g.product(last, scale))
        elif operator == "LayerNormalization":
            tensors.append(g.norm(last))
        elif operator == "Softmax":
            tensors.append(g.softmax(last))
        elif operator == "Residual":
            tensors.append(g.node("Add", last, tensors[max(0, len(tensors) - 3)]))
        elif operator == "Bias":
            tensors.append(g.node("Add", last, g.drawn(WIDTH)))
        else:
            tensors.append(g.node(operator, last))
    return g.model(tensors[-1])


def planner_of(
    graph: ModelProto,
    pins: Sequence[str] = (),
    *,
    allow: Sequence[str] = (),
    target: Target = "fp16",
    ranges: Ranges | None = None,
    headroom: float = HEADROOM,
) -> Planner:
    """A planner by the options that a plan depends on."""
    options = PrecisionOptions(precision=target, keep_fp32=pins, allow_fp16=allow, headroom=headroom)
    return Planner(graph, options, ranges)


def make_plan(graph: ModelProto, pins: Sequence[str] = (), **options: Any) -> PrecisionPlan:
    """The plan that `planner_of` makes by the rules."""
    return planner_of(graph, pins, **options).plan()


def extremes(planner: Planner) -> tuple[PrecisionPlan, PrecisionPlan]:
    """The two plans with fewest casts: most nodes in FP32 and fewest; equal where there is no choice."""
    return planner.plan(), planner.plan(prefer="low")


def session(graph: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(graph: ModelProto, x: np.ndarray, **others: np.ndarray) -> np.ndarray:
    """The first output."""
    return np.asarray(session(graph).run(None, {"x": x, **others})[0])
