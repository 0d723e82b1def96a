"""The measured error of a plan is the error of the graph that it makes, rounding by rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from bertmp.core.errors import InputError
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.ranges import measure
from bertmp.export.precision.reasons import with_errors
from bertmp.export.precision.switched import all_fp32
from tests.export.precision_graphs import WIDTH, Builder, chain, make_plan

CHAINS = st.lists(
    st.sampled_from(["MatMul", "LayerNormalization", "Softmax", "Tanh", "Erf", "Residual", "Bias"]),
    min_size=1,
    max_size=8,
)


def given_values(*arrays: np.ndarray, masks: list[np.ndarray] | None = None) -> Calibration:
    feeds = [{"x": np.asarray(array, np.float32)} for array in arrays]
    return Calibration(
        feeds, masks or [np.ones(array.shape[:2], bool) for array in arrays], "x", "", len(arrays)
    )


@settings(max_examples=50, deadline=None)
@given(operators=CHAINS, seed=st.integers(0, 2**16), prefer=st.sampled_from(["fp32", "low"]))
def test_it_is_what_onnx_itself_computes_in_fp16(operators: list[str], seed: int, prefer: str) -> None:
    """ONNX's reference implementation runs the written graph in numpy's FP16.

    Tolerance: it may round a product or an activation to the neighbouring FP16 number: 4 roundings of the
    largest output.
    """
    graph = chain(operators, seed)
    x = np.random.default_rng(seed).normal(size=(5, WIDTH)).astype(np.float32)
    plan = make_plan(graph)
    if prefer == "low":
        names = [node.name for node in plan.nodes if node.op not in ("LayerNormalization", "Softmax")]
        plan = plan.with_precision(names, "fp16")
    measured = Evaluator(graph, given_values(x)).measure(plan)
    exact = ReferenceEvaluator(graph).run(None, {"x": x})[0]
    mixed = ReferenceEvaluator(apply_plan(graph, plan)).run(None, {"x": x})[0]
    error = np.abs(exact.astype(np.float64) - mixed).max()
    assert abs(measured.max_error - error) <= 4 * 2**-11 * max(1, np.abs(exact).max())


@pytest.mark.parametrize("target", ["fp16", "bf16"])
def test_a_single_rounding_is_measured_to_the_last_bit(target: str) -> None:
    g = Builder()
    graph = g.model(g.node("Tanh", "x"))
    x = np.linspace(-3, 3, 40).reshape(5, WIDTH).astype(np.float32)
    low = np.float16 if target == "fp16" else ml_dtypes.bfloat16
    plan = make_plan(graph, target=target).with_precision(["n0_Tanh"], target)
    expected = np.abs(np.tanh(x.astype(low).astype(np.float32)).astype(low).astype(np.float32) - np.tanh(x))
    measured = Evaluator(graph, given_values(x)).measure(plan)
    assert measured.max_error == pytest.approx(expected.max(), rel=1e-3)
    assert measured.mean_error == pytest.approx(expected.mean(), rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(operators=CHAINS, seed=st.integers(0, 2**16))
def test_everything_in_fp32_has_no_error(operators: list[str], seed: int) -> None:
    graph = chain(operators, seed)
    x = np.random.default_rng(seed).normal(size=(3, WIDTH))
    measured = Evaluator(graph, given_values(x)).measure(all_fp32(make_plan(graph)))
    assert (measured.max_error, measured.flips, measured.finite) == (0, 0, True)


def test_overflow_between_two_fp16_nodes_is_seen() -> None:
    g = Builder()
    large = g.node("Mul", "x", g.constant(1000.0))
    graph = g.model(g.node("Mul", large, g.constant(0.001)))
    plan = make_plan(graph).with_precision(["n0_Mul", "n1_Mul"], "fp16")
    evaluator = Evaluator(graph, given_values(np.full((1, WIDTH), 70.0)))
    measured = evaluator.measure(plan)
    assert not measured.finite
    assert measured.max_error == float("inf")
    in_bf16 = make_plan(graph, target="bf16").with_precision(["n0_Mul", "n1_Mul"], "bf16")
    assert evaluator.measure(in_bf16).finite


def test_padding_does_not_count_and_changed_labels_do() -> None:
    g = Builder()
    graph = g.model(g.node("Add", "x", g.constant(2048.0), out="logits"), shape=("batch", "length", WIDTH))
    plan = make_plan(graph).with_precision(["n0_Add"], "fp16")
    x = np.zeros((1, 3, WIDTH))
    x[0, 1, 4] = 0.4  # FP16 has steps of 2 there
    x[0, 2, 4] = 500.9
    mask = np.array([[True, True, False]])
    measured = Evaluator(graph, given_values(x, masks=[mask])).measure(plan)
    assert measured.max_error == pytest.approx(0.4, rel=1e-3)
    assert measured.flips == 1


def test_a_graph_that_overflows_in_fp32_has_no_error_to_measure() -> None:
    g = Builder()
    graph = g.model(g.node("Div", "x", g.constant(0.0)))
    with pytest.raises(InputError, match="the FP32 graph itself returns infinities"):
        Evaluator(graph, given_values(np.ones((1, WIDTH)))).measure(make_plan(graph))


def test_every_fp32_node_gets_the_error_of_its_reason_and_block() -> None:
    g = Builder()
    graph = g.model(g.softmax(g.product(g.norm(g.product("x")))))
    plan, blocks = make_plan(graph), {node.name: "all" for node in graph.graph.node}
    x = np.random.default_rng(0).normal(size=(4, WIDTH))
    evaluator = Evaluator(graph, given_values(x))
    seen = with_errors(plan, evaluator, measure(graph, evaluator.calibration), blocks)
    for node in seen.kept_fp32():
        alone = all_fp32(plan).with_precision([node.name], "fp16")
        assert node.error == evaluator.measure(alone).max_error > 0
    assert {node.op for node in seen.kept_fp32()} == {"LayerNormalization", "Softmax"}


def test_what_others_converted_is_measured_too() -> None:
    g = Builder()
    graph = g.model(g.node("Tanh", g.product("x")))
    x = np.random.default_rng(0).normal(size=(4, WIDTH))
    mixed = apply_plan(graph, make_plan(graph))
    onnx.checker.check_model(mixed, full_check=True)
    assert 0 < Evaluator(graph, given_values(x)).compare(mixed).max_error < 0.01
