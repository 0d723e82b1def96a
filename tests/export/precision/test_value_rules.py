"""Values that 16 bits spoil on inputs that no calibration showed: positions, angles, guards, maxima."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bertmp import convert, explain
from bertmp.export.precision.plan import PrecisionPlan
from tests.export.precision_graphs import Builder, make_plan, tensor

WIDTH = 8


def reasons(plan: PrecisionPlan) -> dict[str, set[str]]:
    """Operator → the rules that keep it in FP32."""
    found: dict[str, set[str]] = {}
    for node in plan.kept_fp32():
        found.setdefault(node.op, set()).update(reason.rule for reason in node.reasons)
    return found


def in_true_fp16(graph: ModelProto, **feeds: np.ndarray) -> np.ndarray:
    """The first output, node by node in the types that the graph names: no runtime widens them."""
    return np.asarray(ReferenceEvaluator(graph).run(None, feeds)[0])


class TestPositions:
    @staticmethod
    def rotary(source: str) -> ModelProto:
        """`x` `[batch, length, WIDTH]` times the cosine of its position's angles."""
        g = Builder()
        x = g.product("x")
        if source.startswith("a table of numbers"):
            table = g.constant(np.arange(2000))
            length = g.node("Gather", g.node("Shape", "x"), g.constant([1], np.int64))
            positions = g.node("Slice", table, g.constant([0], np.int64), length)
        elif source == "made inside":
            shape = g.node("Shape", "x")
            length = g.node("Gather", shape, g.constant(1, np.int64))
            positions = g.node("Range", g.constant(0, np.int64), length, g.constant(1, np.int64))
        else:
            positions = "positions"
        is_integer = source in ("made inside", "an input")
        angles = g.node("Cast", positions, to=TensorProto.FLOAT) if is_integer else positions
        angles = g.node("Unsqueeze", angles, g.constant([1], np.int64))
        angles = g.node("MatMul", angles, g.constant(np.linspace(1, 0.1, WIDTH)[None]))
        kind = TensorProto.INT64 if is_integer else TensorProto.FLOAT
        graph = g.model(g.product(g.node("Mul", x, g.node("Cos", angles))), inputs=[
            tensor("x", ["batch", "length", WIDTH]),
            *([tensor("positions", ["length"], kind)] if "input" in source else []),
        ])  # fmt: skip
        graph.graph.output[0].CopyFrom(tensor(graph.graph.output[0].name, ["batch", "length", WIDTH]))
        if source.endswith("constant nodes"):  # as TorchScript's exporter writes them
            weights = list(graph.graph.initializer)
            del graph.graph.initializer[:]
            nodes = [
                helper.make_node("Constant", [], [weight.name], name=weight.name, value=weight)
                for weight in weights
            ]
            nodes += graph.graph.node
            del graph.graph.node[:]
            graph.graph.node.extend(nodes)
        return graph

    @pytest.mark.parametrize(
        "source",
        [
            *("made inside", "an input", "an input of numbers"),
            *("a table of numbers", "a table of numbers in constant nodes"),
        ],
    )
    def test_angles_are_exact_at_every_length(self, source: str, tmp_path: Path) -> None:
        graph = self.rotary(source)
        onnx.save(graph, tmp_path / "in.onnx")
        mixed = convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
        assert "angle" in reasons(mixed.planned.plan)["Cos"]
        assert reasons(mixed.planned.plan)["MatMul"] & {"angle", "position"}
        x = np.random.default_rng(0).normal(size=(1, 1500, WIDTH)).astype(np.float32)
        kind = np.int64 if source == "an input" else np.float32
        feeds = {"x": x} | ({"positions": np.arange(1500, dtype=kind)} if "input" in source else {})
        exact, low = (in_true_fp16(one, **feeds) for one in (graph, onnx.load(mixed.graph)))
        assert np.abs(low - exact).max() < 0.02

    def test_distances_between_positions(self) -> None:
        """A bias that grows with the distance: beyond 2048, neighbours would be told apart no longer."""
        g = Builder()
        scores = g.product("x")
        length = g.node("Gather", g.node("Shape", "x"), g.constant(0, np.int64))
        row = g.node("Range", g.constant(0, np.int64), length, g.constant(1, np.int64))
        distance = g.node("Sub", row, g.node("Unsqueeze", row, g.constant([1], np.int64)))
        bias = g.node("Mul", g.node("Cast", g.node("Abs", distance), to=TensorProto.FLOAT), g.constant(-0.5))
        plan = make_plan(g.model(g.softmax(g.node("Add", scores, bias)), shape=("n", WIDTH)))
        assert reasons(plan)["Mul"] == {"position"}
        assert "position" not in reasons(plan).get("Add", set())

    def test_lengths_and_tables_are_no_positions(self) -> None:
        """A scale made from a dimension, and vectors looked up by position, may run in FP16."""
        g = Builder()
        width = g.node("Gather", g.node("Shape", "x"), g.constant(1, np.int64))
        scale = g.node("Sqrt", g.node("Cast", width, to=TensorProto.FLOAT))
        row = g.node("Range", g.constant(0, np.int64), width, g.constant(1, np.int64))
        table = g.node("Gather", g.drawn(100, WIDTH), row)
        plan = make_plan(g.model(g.product(g.node("Add", g.node("Div", g.product("x"), scale), table))))
        rules = {rule for names in reasons(plan).values() for rule in names}
        assert rules.isdisjoint({"position", "angle"})


class TestGuards:
    """Pooled and normalised embeddings: finite where FP32 is, for a row that is masked whole, too."""

    @staticmethod
    def pooled(mode: str) -> ModelProto:
        """`x` `[batch, length, WIDTH]` pooled over the tokens of `mask` `[batch, length]`, normalised."""
        g = Builder()
        axis = g.constant([1], np.int64)
        hidden = g.product("x")
        mask = g.node("Unsqueeze", g.node("Cast", "mask", to=TensorProto.FLOAT), g.constant([2], np.int64))
        if mode == "mean":
            total = g.node("ReduceSum", g.node("Mul", hidden, mask), axis, keepdims=0)
            count = g.node("ReduceSum", mask, axis, keepdims=0)
            pooled = g.node("Div", total, g.node("Clip", count, g.constant(1e-9)))
        else:
            seen = g.node("Cast", mask, to=TensorProto.BOOL)
            pooled = g.node("ReduceMax", g.node("Where", seen, hidden, g.constant(-1e9)), axis, keepdims=0)
        norm = g.node("ReduceL2", pooled, g.constant([-1], np.int64))
        out = g.node("Div", pooled, g.node("Clip", norm, g.constant(1e-12)))
        inputs = [
            tensor("x", ["batch", "length", WIDTH]),
            tensor("mask", ["batch", "length"], TensorProto.INT64),
        ]
        graph = g.model(out, inputs=inputs)
        graph.graph.output[0].CopyFrom(tensor(out, ["batch", WIDTH]))
        return graph

    @pytest.mark.parametrize("mode", ["mean", "maximum"])
    @pytest.mark.parametrize("allowed", [(), ("ReduceL2", "ReduceSum", "ReduceMax", "Div", "Clip")])
    def test_a_row_that_is_masked_whole(self, mode: str, allowed: tuple[str, ...]) -> None:
        from bertmp.export.precision.apply import apply_plan

        graph = self.pooled(mode)
        present = {node.op_type for node in graph.graph.node}
        plan = make_plan(graph, allow=[name for name in allowed if name in present])
        x = np.random.default_rng(0).normal(size=(3, 5, WIDTH)).astype(np.float32)
        mask = np.ones((3, 5), np.int64)
        mask[1, 2:] = mask[2] = 0
        exact, low = (in_true_fp16(one, x=x, mask=mask) for one in (graph, apply_plan(graph, plan)))
        assert np.isfinite(exact).all()
        assert np.abs(low - exact).max() < 0.01

    def test_bf16_holds_small_constants(self) -> None:
        assert "guard" in set().union(*reasons(make_plan(self.pooled("mean"))).values())
        assert "guard" not in set().union(*reasons(make_plan(self.pooled("mean"), target="bf16")).values())


def test_explain_finds_them_in_a_graph_that_others_converted(tmp_path: Path) -> None:
    """Everything in FP16, as converters do that look at nothing."""
    for name, graph in (
        ("rotary", TestPositions.rotary("made inside")),
        ("pooled", TestGuards.pooled("mean")),
    ):
        for node in graph.graph.node:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        for weight in graph.graph.initializer:
            if weight.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(weight).astype(np.float16)
                weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        for value in (*graph.graph.input, *graph.graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        onnx.save(graph, tmp_path / f"{name}.onnx")
    assert {"angle", "position"} <= {one.rule for one in explain(tmp_path / "rotary.onnx").findings}
    # 1e-9 is 0 in FP16: the constant that was a guard is found as what it is now.
    assert "guard" in {one.rule for one in explain(tmp_path / "pooled.onnx").findings}
