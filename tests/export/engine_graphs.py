"""A small BERT in mixed FP16 as an ONNX graph, with the names and the islands that the conversion gives.

Made node by node, so that a test takes milliseconds and says exactly which node is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bertmp.core.io import write_json
from bertmp.export.bundle import CONVERT, EXPORT, FP16_GRAPH, FP32_GRAPH, PLAN, Bundle
from bertmp.export.precision.plan import CAST_PREFIX, NodePlan, PrecisionPlan, Reason

HIDDEN, HEADS, FFN, VOCABULARY, POSITIONS, LABELS = 32, 2, 64, 50, 64, 3
INTEGER_OPS = ("Shape", "Unsqueeze")


@dataclass
class Faults:
    """What is deliberately wrong with the graph.

    Attributes:
        half: FP32 islands, by node name, that run in FP16 instead.
        single: FP16 matrix products, by node name, that run in FP32 instead.
        unknown_op: a node of an operator that no parser knows.
    """

    half: Sequence[str] = ()
    single: Sequence[str] = ()
    unknown_op: bool = False


@dataclass
class Graph:
    """Nodes and initializers in the making."""

    faults: Faults
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    plan: list[NodePlan] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def weight(self, name: str, *shape: int, dtype: type = np.float16, ones: bool = False) -> str:
        value = np.ones(shape) if ones else self.rng.normal(0, 0.05, shape)
        self.weights.append(numpy_helper.from_array(value.astype(dtype), name))
        return name

    def integers(self, name: str, *values: int) -> str:
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def scalar(self, name: str, value: float) -> str:
        self.weights.append(numpy_helper.from_array(np.array(value, np.float16), name))
        return name

    def node(self, op: str, name: str, *inputs: str, planned: str = "fp16", **attributes: object) -> str:
        """Adds a node that the plan knows; returns its output's name."""
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}.out"], name=name, **attributes))
        precision = "integer" if op in INTEGER_OPS else planned
        reasons = (Reason(op.lower(), f"{op} loses digits in FP16"),) if precision == "fp32" else ()
        self.plan.append(NodePlan(name, op, name.rsplit("/", 1)[0].replace("/", "."), precision, reasons))
        return f"{name}.out"

    def cast(self, tensor: str, name: str, to: int) -> str:
        """Adds a cast of the conversion's own, which the plan does not list."""
        name = f"{CAST_PREFIX}{name}"
        self.nodes.append(helper.make_node("Cast", [tensor], [f"{name}.out"], name=name, to=to))
        return f"{name}.out"

    def island(self, op: str, name: str, tensor: str, *weights: str, **attributes: object) -> str:
        """A node planned FP32, as Cast → op → Cast."""
        if name in self.faults.half:
            return self.node(op, name, tensor, *weights, planned="fp32", **attributes)
        wide = self.cast(tensor, f"{name}/in", TensorProto.FLOAT)
        result = self.node(op, name, wide, *weights, planned="fp32", **attributes)
        return self.cast(result, f"{name}/out", TensorProto.FLOAT16)

    def product(self, name: str, a: str, b: str) -> str:
        """A matrix product planned FP16."""
        if name not in self.faults.single:
            return self.node("MatMul", name, a, b)
        wide = [self.cast(tensor, f"{name}/{i}", TensorProto.FLOAT) for i, tensor in enumerate((a, b))]
        return self.cast(self.node("MatMul", name, *wide), f"{name}/out", TensorProto.FLOAT16)

    def linear(self, name: str, tensor: str, fan_in: int, fan_out: int) -> str:
        product = self.product(f"{name}/MatMul", tensor, self.weight(f"{name}.weight", fan_in, fan_out))
        return self.node("Add", f"{name}/Add", product, self.weight(f"{name}.bias", fan_out))

    def layer_norm(self, name: str, tensor: str) -> str:
        node = f"{name}/LayerNormalization"
        dtype = np.float16 if node in self.faults.half else np.float32
        scale = self.weight(f"{name}.weight", HIDDEN, dtype=dtype, ones=True)
        bias = self.weight(f"{name}.bias", HIDDEN, dtype=dtype)
        return self.island("LayerNormalization", node, tensor, scale, bias, axis=-1, epsilon=1e-12)


def _embeddings(g: Graph) -> str:
    name = "bert/embeddings"
    words = g.node(
        "Gather", f"{name}/word_embeddings/Gather", g.weight("word", VOCABULARY, HIDDEN), "input_ids"
    )
    types = g.node(
        "Gather", f"{name}/token_type_embeddings/Gather", g.weight("type", 2, HIDDEN), "token_type_ids"
    )
    shape = g.node("Shape", f"{name}/Shape", "input_ids", start=1, end=2)
    positions = g.node(
        "Slice", f"{name}/Slice", g.weight("position", 1, POSITIONS, HIDDEN),
        g.integers("zero", 0), shape, g.integers("one", 1),
    )  # fmt: skip
    total = g.node("Add", f"{name}/Add", g.node("Add", f"{name}/Add_1", words, types), positions)
    return g.layer_norm(f"{name}/LayerNorm", total)


def _mask(g: Graph) -> str:
    wide = g.node("Unsqueeze", "bert/Unsqueeze", "attention_mask", g.integers("axes", 1, 2))
    half = g.node("Cast", "bert/Cast", wide, to=TensorProto.FLOAT16)
    missing = g.node("Sub", "bert/Sub", g.scalar("unit", 1.0), half)
    return g.node("Mul", "bert/Mul", missing, g.scalar("low", -1e4))


def _heads(g: Graph, name: str, tensor: str, perm: Sequence[int]) -> str:
    shape = g.integers(f"{name}.shape", 0, 0, HEADS, HIDDEN // HEADS)
    split = g.node("Reshape", f"{name}/Reshape", tensor, shape)
    return g.node("Transpose", f"{name}/Transpose", split, perm=list(perm))


def _attention(g: Graph, name: str, tensor: str, mask: str) -> str:
    own = f"{name}/self"
    q, k, v = (g.linear(f"{own}/{part}", tensor, HIDDEN, HIDDEN) for part in ("query", "key", "value"))
    q, v = (_heads(g, f"{own}/{part}", x, (0, 2, 1, 3)) for part, x in (("query", q), ("value", v)))
    k = _heads(g, f"{own}/key", k, (0, 2, 3, 1))
    scores = g.node("Div", f"{own}/Div", g.product(f"{own}/MatMul", q, k), g.scalar(f"{own}.scale", 4.0))
    weights = g.island("Softmax", f"{own}/Softmax", g.node("Add", f"{own}/Add", scores, mask), axis=-1)
    context = g.node(
        "Transpose", f"{own}/Transpose", g.product(f"{own}/MatMul_1", weights, v), perm=[0, 2, 1, 3]
    )
    merged = g.node("Reshape", f"{own}/Reshape", context, g.integers(f"{own}.merge", 0, 0, HIDDEN))
    dense = g.linear(f"{name}/output/dense", merged, HIDDEN, HIDDEN)
    return g.layer_norm(f"{name}/output/LayerNorm", g.node("Add", f"{name}/output/Add", dense, tensor))


def _feed_forward(g: Graph, name: str, tensor: str) -> str:
    wide = g.linear(f"{name}/intermediate/dense", tensor, HIDDEN, FFN)
    act = f"{name}/intermediate/activation"
    erf = g.node("Erf", f"{act}/Erf", g.node("Div", f"{act}/Div", wide, g.scalar(f"{act}.root", 2**0.5)))
    half = g.node("Mul", f"{act}/Mul", wide, g.scalar(f"{act}.half", 0.5))
    gelu = g.node("Mul", f"{act}/Mul_1", half, g.node("Add", f"{act}/Add", erf, g.scalar(f"{act}.one", 1.0)))
    dense = g.linear(f"{name}/output/dense", gelu, FFN, HIDDEN)
    return g.layer_norm(f"{name}/output/LayerNorm", g.node("Add", f"{name}/output/Add", dense, tensor))


def _head(g: Graph, hidden: str) -> None:
    first = g.node("Gather", "bert/pooler/Gather", hidden, "first_token", axis=1)
    g.weights.append(numpy_helper.from_array(np.array(0, np.int64), "first_token"))
    dense = g.node(
        "Gemm", "bert/pooler/dense/Gemm", first, g.weight("pooler.weight", HIDDEN, HIDDEN),
        g.weight("pooler.bias", HIDDEN), transB=1,
    )  # fmt: skip
    pooled = g.node("Tanh", "bert/pooler/Tanh", dense)
    if g.faults.unknown_op:
        pooled = g.node("Frobnicate", "bert/pooler/Frobnicate", pooled)
    logits = g.linear("classifier", pooled, HIDDEN, LABELS)
    g.nodes.append(
        helper.make_node("Cast", [logits], ["logits"], name=f"{CAST_PREFIX}logits", to=TensorProto.FLOAT)
    )


def small_bert(faults: Faults | None = None, layers: int = 1) -> tuple[onnx.ModelProto, PrecisionPlan]:
    """The graph and its plan; with `faults`, the graph breaks the plan."""
    g = Graph(faults or Faults())
    hidden, mask = _embeddings(g), _mask(g)
    for index in range(layers):
        block = f"bert/encoder/layer.{index}"
        hidden = _feed_forward(g, block, _attention(g, f"{block}/attention", hidden, mask))
    _head(g, hidden)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", LABELS])]
    graph = helper.make_graph(g.nodes, "small_bert", inputs, outputs, g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model, PrecisionPlan("0" * 64, tuple(g.plan))


def save_graph(path: Path, faults: Faults | None = None, layers: int = 1) -> Path:
    """Writes the graph alone."""
    onnx.save(small_bert(faults, layers)[0], path)
    return path


def save_bundle(folder: Path, faults: Faults | None = None, layers: int = 1) -> Path:
    """Writes a bundle whose FP16 graph is the small BERT; its FP32 graph is only there to be hashed."""
    folder.mkdir(parents=True)
    model, plan = small_bert(faults, layers)
    onnx.save(model, folder / FP16_GRAPH)
    onnx.save(small_bert()[0], folder / FP32_GRAPH)
    plan.save(folder / PLAN)
    write_json(folder / "config.json", {"max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY})
    common: dict[str, Any] = {"tools": (), "settings": {}, "results": {}, "seconds": 0.0}
    bundle = Bundle(folder)
    bundle.record(EXPORT, inputs=(), outputs=[FP32_GRAPH, "config.json"], **common)
    bundle.record(CONVERT, inputs=[FP32_GRAPH], outputs=[FP16_GRAPH, PLAN], **common)
    return folder
