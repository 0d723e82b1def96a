"""The converter on graphs of any make: valid, idempotent, one cast a tensor, and true to its plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bertmp.errors import InputError
from bertmp.export import convert
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.convert import plan_of
from bertmp.export.precision.plan import CAST_PREFIX, PrecisionPlan
from bertmp.export.precision.planner import make_plan
from bertmp.export.precision.types import element_types

WIDTH = 8


def graph_of(operators: list[str], seed: int = 0, scale: float = 1.0) -> ModelProto:
    """A chain of encoder operators over `x`, FP32 `[batch, WIDTH]`; `Residual` adds what stood two before."""
    rng = np.random.default_rng(seed)
    nodes, weights, tensors = [], [], ["x"]

    def constant(values: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{len(weights)}"))
        return weights[-1].name

    for number, operator in enumerate(operators):
        last, out = tensors[-1], f"t{number}"
        if operator == "MatMul":
            inputs = [last, constant(rng.normal(size=(WIDTH, WIDTH)) * scale)]
        elif operator == "LayerNormalization":
            inputs = [last, constant(1 + rng.normal(size=WIDTH)), constant(rng.normal(size=WIDTH))]
        elif operator == "Residual":
            inputs = [last, tensors[max(0, len(tensors) - 3)]]
        elif operator == "Bias":
            inputs = [last, constant(rng.normal(size=WIDTH))]
        else:
            inputs = [last]
        kind = {"Residual": "Add", "Bias": "Add"}.get(operator, operator)
        attributes = {"axis": -1} if kind in ("Softmax", "LayerNormalization") else {}
        nodes.append(helper.make_node(kind, inputs, [out], name=f"n{number}_{kind}", **attributes))
        tensors.append(out)
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(tensors[-1], TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(graph: ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


CHAINS = st.lists(
    st.sampled_from(["MatMul", "LayerNormalization", "Softmax", "Tanh", "Erf", "Residual", "Bias"]),
    min_size=1,
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(operators=CHAINS, seed=st.integers(0, 2**16))
def test_any_chain_converts_to_a_valid_graph_that_answers_alike(operators: list[str], seed: int) -> None:
    graph = graph_of(operators, seed, scale=0.4)
    plan, mixed = plan_of(graph)
    onnx.checker.check_model(mixed, full_check=True)

    types = element_types(mixed)
    for node, planned in zip(
        [n for n in mixed.graph.node if not n.name.startswith(CAST_PREFIX)], plan.nodes, strict=True
    ):
        kind = TensorProto.FLOAT if planned.precision == "fp32" else TensorProto.FLOAT16
        assert {types[name] for name in (*node.input, *node.output)} == {kind}
        assert (planned.precision == "fp32") == (node.op_type in ("LayerNormalization", "Softmax"))

    x = np.random.default_rng(seed).normal(size=(5, WIDTH)).astype(np.float32)
    expected, answered = run(graph, x), run(mixed, x)
    assert answered.dtype == np.float32
    assert np.abs(expected - answered).max() <= 0.05 * max(1.0, np.abs(expected).max())


@settings(max_examples=40, deadline=None)
@given(operators=CHAINS, seed=st.integers(0, 2**16))
def test_conversion_is_deterministic_and_inserts_one_cast_a_tensor(operators: list[str], seed: int) -> None:
    graph = graph_of(operators, seed)
    before = graph.SerializeToString()
    plan = make_plan(graph)
    mixed, again = apply_plan(graph, plan), apply_plan(graph, plan)
    assert graph.SerializeToString() == before
    assert mixed.SerializeToString() == again.SerializeToString()
    casts = [
        (node.input[0], node.attribute[0].i) for node in mixed.graph.node if node.name.startswith(CAST_PREFIX)
    ]
    assert len(casts) == len(set(casts))


def test_a_tensor_with_many_readers_is_cast_once() -> None:
    graph = graph_of(["LayerNormalization", "Tanh", "Residual", "Residual"])
    _, mixed = plan_of(graph)
    casts = [node.name for node in mixed.graph.node if node.op_type == "Cast"]
    assert casts == [f"{CAST_PREFIX}t0/to_fp16", f"{CAST_PREFIX}x/to_fp16", f"{CAST_PREFIX}t3/to_fp32"]


def test_a_weight_that_fp16_cannot_hold_keeps_its_node_in_fp32() -> None:
    graph = graph_of(["Bias", "MatMul"])
    big = np.zeros(WIDTH, np.float32)
    big[3] = 1e6
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(big, "w0"))
    plan, mixed = plan_of(graph)
    (node,) = plan.kept_fp32()
    assert node.name == "n0_Add"
    (reason,) = node.reasons
    assert reason.rule == "constant-beyond-range"
    assert reason.numbers["largest"] == 1e6
    x = np.ones((1, WIDTH), np.float32)
    assert np.isfinite(run(mixed, x * 0)).all()


def test_an_infinite_constant_counts_as_beyond_range() -> None:
    graph = graph_of(["Bias"])
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(WIDTH, -np.inf, np.float32), "w0"))
    assert [node.reasons[0].rule for node in make_plan(graph).kept_fp32()] == ["constant-beyond-range"]


def test_a_weight_read_in_both_precisions_is_stored_in_both() -> None:
    graph = graph_of(["LayerNormalization", "Bias"])
    graph.graph.node[1].input[1] = graph.graph.node[0].input[2]
    del graph.graph.initializer[2]
    _, mixed = plan_of(graph)
    stored = {tensor.name: tensor.data_type for tensor in mixed.graph.initializer}
    assert stored == {"w0": TensorProto.FLOAT, "w1": TensorProto.FLOAT, "w1/fp16": TensorProto.FLOAT16}


def test_a_plan_survives_the_disk_and_is_refused_for_another_graph(tmp_path: Path) -> None:
    graph = graph_of(["MatMul", "Softmax"])
    plan = make_plan(graph)
    plan.save(tmp_path / "plan.json")
    assert PrecisionPlan.load(tmp_path / "plan.json") == plan
    with pytest.raises(InputError, match="the plan is for another graph"):
        apply_plan(graph_of(["MatMul"]), plan)


class TestConvertCommand:
    def test_it_writes_the_graph_and_its_plan(self, tmp_path: Path) -> None:
        onnx.save(graph_of(["MatMul", "LayerNormalization", "Softmax"]), tmp_path / "in.onnx")
        result = convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
        assert result.nodes == {"fp16": 1, "fp32": 2, "integer": 0}
        assert result.plan == tmp_path / "out.precision-plan.json"
        onnx.checker.check_model(onnx.load(result.graph), full_check=True)

    def test_nodes_without_names_get_some(self, tmp_path: Path) -> None:
        graph = graph_of(["MatMul", "Softmax"])
        for node in graph.graph.node:
            node.name = ""
        onnx.save(graph, tmp_path / "in.onnx")
        plan = PrecisionPlan.load(convert(tmp_path / "in.onnx", tmp_path / "out.onnx").plan)
        assert [node.name for node in plan.nodes] == ["MatMul_0", "Softmax_1"]

    @pytest.mark.parametrize("content", [b"", b"not a graph at all", None])
    def test_what_is_no_graph_is_refused(self, content: bytes | None, tmp_path: Path) -> None:
        source = tmp_path / "in.onnx"
        if content is None:
            onnx.save(graph_of(["MatMul"] * 20), source)
            content = source.read_bytes()[:500]
        source.write_bytes(content)
        with pytest.raises(InputError, match="not a valid ONNX graph"):
            convert(source, tmp_path / "out.onnx")
        assert not (tmp_path / "out.onnx").exists()

    def test_a_converted_graph_is_not_converted_again(self, tmp_path: Path) -> None:
        onnx.save(graph_of(["MatMul", "Softmax"]), tmp_path / "in.onnx")
        convert(tmp_path / "in.onnx", tmp_path / "half.onnx")
        with pytest.raises(InputError, match="already in FP16"):
            convert(tmp_path / "half.onnx", tmp_path / "out.onnx")

    def test_a_pin_that_names_nothing_is_refused(self, tmp_path: Path) -> None:
        onnx.save(graph_of(["MatMul"]), tmp_path / "in.onnx")
        with pytest.raises(InputError, match="'Gelu' names no node"):
            convert(tmp_path / "in.onnx", tmp_path / "out.onnx", keep_fp32=["Gelu"])
