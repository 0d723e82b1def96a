"""Mask constants: kept in FP32 to the bit, or replaced with a justification where that saves casts."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from bertmp.export.precision.apply import apply_plan, inserted_casts
from bertmp.export.precision.plan import RangeRecord
from bertmp.export.precision.planner import SAFE_MASK_BIAS
from bertmp.export.precision.ranges import Ranges
from tests.export.precision_graphs import Builder, make_plan, planner_of, run, tensor

LENGTH = 8
CONSTANTS = [-3.4028234663852886e38, -np.inf, -65504.0, -1e9]


def masked_attention(constant: float, way: str) -> ModelProto:
    """Scores of `x` `[batch, LENGTH]`, masked by `mask` `[batch, LENGTH]` in one of the ways that occur."""
    g = Builder()
    scores = g.product("x", scale=1.0)
    low = g.constant(constant)
    if way == "Mul":
        missing = g.node("Sub", g.constant(1.0), g.node("Cast", "mask", to=TensorProto.FLOAT))
        scores = g.node("Add", scores, g.node("Mul", missing, low))
    elif way == "Where into Add":
        keep = g.node("Cast", "mask", to=TensorProto.BOOL)
        scores = g.node("Add", scores, g.node("Where", keep, g.constant(0.0), low))
    else:
        scores = g.node("Where", g.node("Cast", "mask", to=TensorProto.BOOL), scores, low)
    inputs = [tensor("x", ["batch", LENGTH]), tensor("mask", ["batch", LENGTH], TensorProto.INT64)]
    return g.model(g.product(g.softmax(scores)), inputs=inputs)


WAYS = ["Mul", "Where into Add", "Where"]
X = np.random.default_rng(1).normal(size=(6, LENGTH)).astype(np.float32)
MASK = np.tril(np.ones((LENGTH, LENGTH), np.int64))[1:7]


def ranges(graph: ModelProto) -> Ranges:
    """As calibration would find them: scores of 30, and a mask of zeros and ones."""
    largest = {name: 30.0 for node in graph.graph.node for name in node.output}
    largest.update({node.output[0]: 1.0 for node in graph.graph.node if node.op_type in ("Cast", "Sub")})
    return Ranges(largest, RangeRecord("calibration", "texts.txt", "0" * 64, 6))


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("way", WAYS)
def test_the_addition_stays_fp32_where_that_costs_nothing(constant: float, way: str) -> None:
    graph = masked_attention(constant, way)
    if way == "Mul" and np.isinf(constant):
        pytest.skip("0 times infinity is not a number in the FP32 graph either")
    plan = make_plan(graph, ranges=ranges(graph))
    assert plan.rewrites == ()
    reasons = [r for node in plan.kept_fp32() for r in node.reasons if r.rule == "mask-constant"]
    assert reasons
    assert all(reason.numbers["constant"] == pytest.approx(constant) for reason in reasons)
    mixed = apply_plan(graph, plan)
    assert len(inserted_casts(mixed)) == 4
    expected, answered = (run(made, X, mask=MASK) for made in (graph, mixed))
    assert np.isfinite(answered).all()
    assert np.abs(expected - answered).max() < 0.01


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("way", WAYS)
def test_the_constant_is_replaced_where_that_saves_casts(constant: float, way: str) -> None:
    graph = masked_attention(constant, way)
    planner = planner_of(graph, allow=["Softmax"], ranges=ranges(graph))
    plan = planner.plan(prefer="low")
    (rewrite,) = plan.rewrites
    assert (rewrite.before, rewrite.after) == (pytest.approx(constant), SAFE_MASK_BIAS)
    assert "scores reach 30 on real inputs" in rewrite.justification
    mixed = apply_plan(graph, plan)
    assert len(inserted_casts(mixed)) == 2  # in and out of the whole
    if way != "Mul" or np.isfinite(constant):
        expected, answered = (run(made, X, mask=MASK) for made in (graph, mixed))
        assert np.abs(expected - answered).max() < 0.01


@pytest.mark.parametrize("problem", ["no ranges", "large scores", "a mask that is no mask"])
def test_nothing_is_replaced_without_a_justification(problem: str) -> None:
    graph = masked_attention(-1e9, "Mul")
    measured = ranges(graph)
    largest = dict(measured.largest)
    if problem == "large scores":
        largest["t0"] = 5000.0
    elif problem == "a mask that is no mask":
        largest.update({name: 2.0 for name in largest if largest[name] == 1})
    given = None if problem == "no ranges" else Ranges(largest, RangeRecord("calibration", "", "", 6))
    plan = make_plan(graph, allow=["Softmax"], ranges=given)
    assert plan.rewrites == ()
    assert {node.op for node in plan.kept_fp32()} >= {"Mul", "Add", "Softmax"}


def test_a_mask_that_fits_is_no_reason() -> None:
    plan = make_plan(masked_attention(-1e4, "Mul"))
    assert not [r for node in plan.kept_fp32() for r in node.reasons if r.rule == "mask-constant"]
    bf16 = make_plan(masked_attention(-1e9, "Mul"), target="bf16")
    assert not [r for node in bf16.kept_fp32() for r in node.reasons if r.rule == "mask-constant"]
