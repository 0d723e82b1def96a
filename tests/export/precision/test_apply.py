"""Applying a plan: names, types, weights and casts of the graph that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.graph.types import element_types
from bertmp.export.precision.apply import PLAN_KEY, apply_plan, inserted_casts
from bertmp.export.precision.convert import convert
from bertmp.export.precision.plan import CAST_PREFIX, Target
from tests.export.precision_graphs import WIDTH, Builder, chain, make_plan, planner_of, run, tensor


def stored(graph: ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in graph.graph.initializer}


@pytest.mark.parametrize(("target", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_nodes_keep_their_names_and_run_as_planned(target: Target, kind: int) -> None:
    graph = chain(["MatMul", "Tanh", "LayerNormalization", "MatMul", "Softmax", "MatMul"])
    before = graph.SerializeToString()
    plan = make_plan(graph, target=target)
    mixed = apply_plan(graph, plan)
    assert graph.SerializeToString() == before
    own = [node for node in mixed.graph.node if not node.name.startswith(CAST_PREFIX)]
    assert [node.name for node in own] == [node.name for node in plan.nodes]
    types = element_types(mixed)
    for node, planned in zip(own, plan.nodes, strict=True):
        wanted = TensorProto.FLOAT if planned.precision == "fp32" else kind
        assert {types[name] for name in (*node.input, *node.output)} == {wanted}
    assert all(node.name.endswith(("/to_fp32", f"/to_{target}")) for node in inserted_casts(mixed))
    assert mixed.graph.input == graph.graph.input
    assert mixed.graph.output == graph.graph.output


def test_it_is_idempotent_and_knows_its_plan() -> None:
    graph = chain(["MatMul", "Softmax", "MatMul"])
    plan = make_plan(graph)
    mixed = apply_plan(graph, plan)
    assert apply_plan(mixed, plan) is mixed
    assert apply_plan(graph, plan).SerializeToString() == mixed.SerializeToString()
    assert {item.key: item.value for item in mixed.metadata_props} == {PLAN_KEY: plan.digest()}
    edited = plan.with_precision(["n0_MatMul"], "fp32")
    with pytest.raises(InputError, match="already converted, by another plan"):
        apply_plan(mixed, edited)
    assert len(inserted_casts(apply_plan(graph, edited))) == len(inserted_casts(mixed)) - 2
    with pytest.raises(InputError, match="the plan is for another graph"):
        apply_plan(chain(["MatMul", "Softmax"]), plan)


def test_an_edited_plan_may_change_precisions_alone(tmp_path: Path) -> None:
    g = Builder()
    size = g.node("Shape", "x")
    graph = g.model(g.node("Reshape", g.node("Tanh", "x"), size))
    onnx.save(graph, tmp_path / "in.onnx")
    made = json.loads(convert(tmp_path / "in.onnx", tmp_path / "made.onnx").plan.read_text())

    def refused(edit: Callable[[list[dict[str, Any]]], None]) -> str:
        plan = json.loads(json.dumps(made))
        edit(plan["nodes"])
        (tmp_path / "edited.json").write_text(json.dumps(plan))
        with pytest.raises(InputError) as error:
            convert(tmp_path / "in.onnx", tmp_path / "out.onnx", plan=tmp_path / "edited.json")
        assert not (tmp_path / "out.onnx").exists()
        assert "edited.json" in str(error.value)
        return str(error.value)

    assert "n0_Shape in fp16, which touches no floating-point" in refused(
        lambda nodes: nodes[0].update(precision="fp16")
    )
    assert "leaves out the node: n1_Tanh" in refused(lambda nodes: nodes.pop(1))
    assert "names a node that the graph does not have: other" in refused(
        lambda nodes: nodes[1].update(name="other")
    )
    with pytest.raises(InputError, match="the output is a folder"):
        convert(tmp_path / "in.onnx", tmp_path)


def test_a_weight_read_in_both_precisions_is_stored_in_both() -> None:
    g = Builder()
    shared = g.drawn(WIDTH, WIDTH)
    low = g.node("MatMul", "x", shared)
    g.node("MatMul", low, shared)
    graph = g.model("t1")
    mixed = apply_plan(graph, make_plan(graph, ["n0_MatMul"]))
    assert stored(mixed) == {shared: TensorProto.FLOAT, f"{shared}/fp16": TensorProto.FLOAT16}


def test_an_output_that_others_read_too() -> None:
    g = Builder()
    made = g.product("x")
    graph = g.model(made, g.product(g.norm(made)), g.product(made))
    plan = planner_of(graph).plan(prefer="low")
    mixed = apply_plan(graph, plan)
    casts = {node.input[0]: node.output[0] for node in inserted_casts(mixed)}
    assert casts[f"{made}/fp16"] == made
    (norm,) = [node for node in mixed.graph.node if node.op_type == "LayerNormalization"]
    assert norm.input[0] == made  # the output itself: no second cast
    x = np.ones((2, WIDTH), np.float32)
    assert np.abs(run(graph, x) - run(mixed, x)).max() < 0.01


def test_constants_in_nodes_are_stored_like_weights() -> None:
    g = Builder()
    half = g.node("Constant", value=numpy_helper.from_array(np.float32(0.5)))
    third = g.node("Constant", value_float=1 / 3)
    low = g.product(g.node("Mul", g.product("x"), half))
    high = g.softmax(g.node("Mul", low, half))
    graph = g.model(g.node("Add", g.node("Mul", high, third), g.node("Constant", value_floats=[1.0] * WIDTH)))
    plan = make_plan(graph)
    mixed = apply_plan(graph, plan)
    types = element_types(mixed)
    assert types[half] == TensorProto.FLOAT
    assert types[f"{half}/fp16"] == TensorProto.FLOAT16
    assert types[third] == TensorProto.FLOAT
    assert plan.nodes[0].reasons[0].rule == "constant"
    x = np.ones((2, WIDTH), np.float32)
    assert np.abs(run(graph, x) - run(mixed, x)).max() < 0.01


def test_no_cast_follows_a_cast() -> None:
    g = Builder()
    mask = g.node("Cast", "mask", to=TensorProto.FLOAT)
    low = g.node("Mul", g.product("x"), mask)
    high = g.node("Add", g.softmax(g.product(low)), mask)
    inputs = [tensor("x", ["batch", WIDTH]), tensor("mask", ["batch", WIDTH], TensorProto.INT64)]
    graph = g.model(g.product(g.softmax(high)), inputs=inputs)
    mixed = apply_plan(graph, make_plan(graph))
    casts = {node.output[0]: node.input[0] for node in mixed.graph.node if node.op_type == "Cast"}
    assert not set(casts) & set(casts.values())
    assert [name for name, source in casts.items() if source == "mask"] == [mask, f"{mask}/to_fp16"]


def test_a_weight_that_is_an_output_stays_fp32() -> None:
    g = Builder()
    weight = g.drawn(WIDTH, WIDTH)
    graph = g.model(g.node("MatMul", "x", weight))
    graph.graph.output.append(tensor(weight, [WIDTH, WIDTH]))
    mixed = apply_plan(graph, make_plan(graph))
    assert stored(mixed) == {f"{weight}/fp16": TensorProto.FLOAT16, weight: TensorProto.FLOAT}
