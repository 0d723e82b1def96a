"""Each reason to keep a node in FP32: where it applies, with which numbers, and who may overrule it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.graph.loading import check_graph
from bertmp.export.precision.apply import apply_plan, inserted_casts
from bertmp.export.precision.plan import PrecisionPlan, RangeRecord, Reason
from bertmp.export.precision.ranges import Ranges
from tests.export.precision_graphs import WIDTH, Builder, chain, extremes, make_plan, planner_of, run, tensor


def rules_of(plan: PrecisionPlan) -> dict[str, list[str]]:
    return {node.name: [reason.rule for reason in node.reasons] for node in plan.kept_fp32()}


def reason(plan: PrecisionPlan, name: str, rule: str) -> Reason:
    (node,) = [node for node in plan.nodes if node.name == name]
    return next(reason for reason in node.reasons if reason.rule == rule)


def ranges(**largest: float) -> Ranges:
    return Ranges(largest, RangeRecord("calibration", "texts.txt", "0" * 64, 3))


class TestDecomposedNorms:
    """Layer normalisations that an exporter took apart, in the ways that occur."""

    @staticmethod
    def graph(square: str, root: str, mean: bool = True, twice: bool = False) -> tuple[ModelProto, int]:
        """The graph, and how many nodes its normalisation has; a product stands on either side."""
        g = Builder()
        x = g.node("Add", g.product("x"), "x")
        before = len(g.nodes)
        average = g.node("ReduceMean", x, g.constant([-1], np.int64)) if mean else ""
        centred = g.node("Sub", x, average) if mean else x
        other = g.node("Sub", x, average) if twice else centred
        squared = (
            g.node("Pow", centred, g.constant(2.0)) if square == "Pow" else g.node("Mul", centred, centred)
        )
        variance = g.node("ReduceMean", squared, g.constant([-1], np.int64))
        safe = g.node("Add", variance, g.constant(1e-12))
        if root == "Sqrt Div":
            scaled = g.node("Div", other, g.node("Sqrt", safe))
        elif root == "Sqrt Reciprocal":
            scaled = g.node("Mul", other, g.node("Reciprocal", g.node("Sqrt", safe)))
        elif root == "1/Sqrt":
            scaled = g.node("Mul", g.node("Div", g.constant(1.0), g.node("Sqrt", safe)), other)
        else:
            scaled = g.node("Mul", other, g.node("Pow", safe, g.constant(-0.5)))
        biased = g.node("Add", g.node("Mul", g.drawn(WIDTH), scaled), g.drawn(WIDTH))
        return g.model(g.product(biased)), len(g.nodes) - before - 1

    @pytest.mark.parametrize("square", ["Pow", "Mul"])
    @pytest.mark.parametrize("root", ["Sqrt Div", "Sqrt Reciprocal", "1/Sqrt", "Pow -0.5"])
    def test_all_of_it_stays_fp32(self, square: str, root: str) -> None:
        graph, size = self.graph(square, root)
        plan = make_plan(graph)
        found = [node for node in plan.nodes if "normalisation" in rules_of(plan).get(node.name, ())]
        assert len(found) == size
        assert plan.nodes[0].precision == plan.nodes[-1].precision == "fp16"
        fewest = extremes(planner_of(graph))[1]
        assert fewest.nodes[1].reasons[0].rule == "feeds-normalisation"
        mixed = apply_plan(graph, plan)
        assert len(inserted_casts(mixed)) == 4
        x = 300 * np.random.default_rng(0).normal(size=(4, WIDTH)).astype(
            np.float32
        )  # whose squares overflow
        assert np.abs(run(graph, x) - run(mixed, x)).max() < 0.05

    def test_variants(self) -> None:
        for options in ({"twice": True}, {"mean": False}):
            graph, size = self.graph("Pow", "Sqrt Div", **options)
            rules = rules_of(make_plan(graph))
            assert sum("normalisation" in names for names in rules.values()) == size
        plan = make_plan(self.graph("Pow", "Sqrt Div", mean=False)[0])
        assert "a decomposed RMS normalisation" in reason(plan, "n2_Pow", "normalisation").sentence

    def test_the_folded_form(self) -> None:
        g = Builder()
        x, axis = g.node("Add", g.product("x"), "x"), g.constant([-1], np.int64)
        mean = g.node("ReduceMean", x, axis)
        difference = g.node("Sub", x, mean)
        variance = g.node("ReduceMean", g.node("Mul", difference, difference), axis)
        root = g.node("Reciprocal", g.node("Sqrt", g.node("Add", variance, g.constant(1e-12))))
        scale = g.node("Mul", root, g.drawn(WIDTH))
        shift = g.node("Sub", g.drawn(WIDTH), g.node("Mul", mean, scale))
        graph = g.model(g.product(g.node("Add", g.node("Mul", x, scale), shift)))
        rules = rules_of(make_plan(graph))
        inside = [name for name, reasons in rules.items() if "normalisation" in reasons]
        assert inside == [node.name for node in g.nodes[2:-1]]

    def test_a_mean_of_squares_alone_is_a_reduction(self) -> None:
        g = Builder()
        squares = g.node("Mul", "x", "x")
        mean = g.node("ReduceMean", squares, g.constant([-1], np.int64))
        plan = make_plan(g.model(g.node("Mul", "x", mean)))
        assert rules_of(plan)["n1_ReduceMean"] == ["reduction"]


class TestValues:
    def test_a_weight_beyond_range_keeps_its_node(self) -> None:
        g = Builder()
        big = np.zeros((WIDTH, WIDTH))
        big[3] = 1e6
        plan = make_plan(g.model(g.product(g.node("MatMul", g.product("x"), g.constant(big)))))
        assert reason(plan, "n1_MatMul", "constant-beyond-range").numbers["largest"] == 1e6
        assert [node.precision for node in plan.nodes] == ["fp16", "fp32", "fp16"]

    def test_bf16_holds_what_fp16_does_not(self) -> None:
        g = Builder()
        graph = g.model(g.node("MatMul", "x", g.constant(np.full((WIDTH, WIDTH), 1e6))))
        assert make_plan(graph, target="bf16").counts() == {"bf16": 1, "fp32": 0, "integer": 0}

    def test_weights_that_would_become_zero_or_subnormal(self) -> None:
        g = Builder()
        graph = g.model(g.product(g.product("x", scale=2e-6), scale=1e-3))
        plan = make_plan(graph)
        numbers = reason(plan, "n0_MatMul", "small-weights").numbers
        weights = np.frombuffer(graph.graph.initializer[0].raw_data, np.float32)
        rounded = weights.astype(np.float16).astype(np.float32)
        assert numbers["relative_error"] == pytest.approx(
            np.linalg.norm(rounded - weights) / np.linalg.norm(weights), rel=1e-5
        )
        assert numbers["relative_error"] > numbers["limit"]
        assert numbers["subnormal_share"] == 1
        assert plan.nodes[1].precision == "fp16"
        assert make_plan(graph, target="bf16").kept_fp32() == []

    def test_what_comes_near_overflow_on_real_text(self) -> None:
        g = Builder()
        first = g.product("x")
        second = g.product(first)
        graph = g.model(g.product(second))
        near, far = ranges(x=1, t0=10, t1=20000.0), ranges(x=1, t0=10, t1=16000.0)
        plan = make_plan(graph, ranges=near)
        # Both the product that writes it and the one that reads it.
        assert rules_of(plan) == {"n1_MatMul": ["range"], "n2_MatMul": ["range"]}
        numbers = reason(plan, "n1_MatMul", "range").numbers
        assert numbers["headroom"] == pytest.approx(65504 / 20000)
        assert plan.ranges is not None
        assert plan.ranges.texts == 3
        assert make_plan(graph, ranges=far).kept_fp32() == []
        assert make_plan(graph, ranges=near, headroom=3).kept_fp32() == []
        assert make_plan(graph, ranges=near, target="bf16").kept_fp32() == []


class TestRegions:
    def test_quantised_regions_are_left_alone(self) -> None:
        g = Builder()
        scale, zero = g.constant(0.1), g.constant(0, np.int8)
        quantised = g.node("QuantizeLinear", g.product("x"), scale, zero)
        weight = g.node("DequantizeLinear", g.constant(np.eye(WIDTH) * 10, np.int8), scale, zero)
        inside = g.node("MatMul", g.node("DequantizeLinear", quantised, scale, zero), weight)
        out = g.node("DequantizeLinear", g.node("QuantizeLinear", inside, scale, zero), scale, zero)
        graph = g.model(g.product(g.node("Tanh", g.node("Tanh", out))))
        plan = make_plan(graph)
        kept = {name for name, rules in rules_of(plan).items() if "quantised" in rules}
        assert {node.name for node in plan.nodes} - kept == {"n8_Tanh", "n9_MatMul"}
        assert plan.nodes[-1].precision == "fp16"
        check_graph(apply_plan(graph, plan), "here")  # type: ignore[arg-type]

    def test_control_flow_stays_whole_and_finds_what_it_reads(self) -> None:
        g = Builder()
        made = g.product("x")
        flag = g.node("Cast", g.node("ReduceSum", made, keepdims=0), to=TensorProto.BOOL)
        branches = {
            f"{name}_branch": helper.make_graph(
                [helper.make_node("Mul", [made, g.constant(factor)], [f"{name}_out"], name=f"{name}_Mul")],
                name,
                [],
                [tensor(f"{name}_out", None)],
            )
            for name, factor in (("then", 2.0), ("else", 3.0))
        }
        chosen = g.node("If", flag, **branches)
        graph = g.model(g.node("Add", g.product(chosen), made))
        plan = make_plan(graph)
        assert reason(plan, "n3_If", "control-flow").sentence.startswith("If has subgraphs")
        mixed = apply_plan(graph, plan)
        check_graph(mixed, "here")  # type: ignore[arg-type]
        x = np.ones((2, WIDTH), np.float32)
        assert np.abs(run(graph, x) - run(mixed, x)).max() < 0.05

    def test_unknown_operators_stay_fp32(self) -> None:
        g = Builder()
        strange = g.node("FastGelu", g.product("x"), domain="com.microsoft")
        graph = g.model(g.product(strange), domains=["com.microsoft"])
        plan = make_plan(graph)
        assert rules_of(plan) == {"n1_FastGelu": ["unknown-operator"]}
        mixed = apply_plan(graph, plan)
        check_graph(mixed, "here")  # type: ignore[arg-type]
        assert len(inserted_casts(mixed)) == 4

    def test_operators_without_a_low_form(self) -> None:
        g = Builder()
        graph = g.model(g.product(g.node("Mish", g.product("x"))))
        assert make_plan(graph).kept_fp32() == []
        assert rules_of(make_plan(graph, target="bf16")) == {"n1_Mish": ["no-low-form"]}

    def test_sequences_stay_fp32(self) -> None:
        g = Builder()
        pieces = g.node("SplitToSequence", g.product("x"), axis=1)
        graph = g.model(g.product(g.node("ConcatFromSequence", pieces, axis=1)))
        assert list(rules_of(make_plan(graph)).values()) == [["not-a-tensor"], ["not-a-tensor"]]


class TestWhatTheUserSays:
    def test_pins_by_name_operator_and_module(self) -> None:
        g = Builder()
        graph = g.model(g.product(g.product(g.product("x"))))
        for node, name in zip(graph.graph.node, ("bert/layer.1/a", "bert/layer.10/a", "head/b"), strict=True):
            node.name = name
        for pattern, kept in (
            ("head/*", ["head/b"]),
            ("layer.1", ["bert/layer.1/a"]),
            ("bert", ["bert/layer.1/a", "bert/layer.10/a"]),
            ("MatMul", ["bert/layer.1/a", "bert/layer.10/a", "head/b"]),
        ):
            plan = make_plan(graph, [pattern])
            assert [node.name for node in plan.kept_fp32()] == kept
            assert reason(plan, kept[0], "pinned").sentence == f"--keep-fp32 {pattern} matches it"

    def test_a_softmax_may_be_demoted_where_the_user_asks(self) -> None:
        graph = chain(["MatMul", "Softmax", "MatMul"])
        assert make_plan(graph, allow=["Softmax"]).kept_fp32() == []
        assert [n.name for n in make_plan(graph, ["Softmax"], allow=["Softmax"]).kept_fp32()] == [
            "n1_Softmax"
        ]

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"pins": ["Gelu"]}, "'Gelu' matches no node (--keep-fp32)"),
            ({"allow": ["Gelu"]}, "'Gelu' matches no node (--allow-fp16)"),
            ({"target": "fp8"}, "unknown value 'fp8' (--precision)"),
            ({"headroom": 0.5}, "a headroom of 0.5 lets tensors overflow (--headroom)"),
        ],
    )
    def test_bad_settings_are_one_line(self, options: dict[str, object], says: str) -> None:
        with pytest.raises(InputError) as raised:
            make_plan(chain(["MatMul"]), **options)  # type: ignore[arg-type]
        assert str(raised.value).startswith(says)


class TestPlanner:
    def test_raised_and_demoted_nodes(self) -> None:
        graph = chain(["MatMul", "Softmax", "MatMul", "MatMul"])
        graph.graph.initializer[2].CopyFrom(
            numpy_helper.from_array(np.full((WIDTH,) * 2, 1e-7, np.float32), "w2")
        )
        planner = planner_of(graph)
        because = Reason("measured", "it causes most of the error")
        raised = planner.plan({"n0_MatMul": because})
        assert reason(raised, "n0_MatMul", "measured") == because
        assert rules_of(planner.plan()) == {"n1_Softmax": ["softmax"], "n3_MatMul": ["small-weights"]}
        assert not planner.can_demote("n1_Softmax")
        assert planner.can_demote("n3_MatMul")
        demoted = planner.plan(demoted=["n1_Softmax", "n3_MatMul"])
        assert [node.name for node in demoted.kept_fp32()] == ["n1_Softmax"]

    def test_planning_leaves_the_graph_alone_and_is_deterministic(self) -> None:
        graph = chain(["MatMul", "LayerNormalization", "Residual", "Softmax"])
        before = graph.SerializeToString()
        assert make_plan(graph) == make_plan(graph)
        assert graph.SerializeToString() == before
