"""The graph for analysis: use-def links through subgraphs, constants, weights left out."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import read_names
from bertmp.export.graph.ort_sessions import open_session, run
from bertmp.export.graph.types import element_types
from bertmp.export.graph.weights import LARGE_WEIGHT, split_weights, without_weights
from tests.export.precision_graphs import WIDTH, Builder, tensor


def graph_with_branches() -> ModelProto:
    """`t0 = Tanh(x)`, which only the branches of an `If` read."""
    g = Builder()
    g.node("Tanh", "x")
    branches = {}
    for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg")):
        inner = helper.make_node(operator, ["t0"], [f"{name}_y"], name=f"{name}_{operator}")
        branches[name] = helper.make_graph([inner], name, [], [tensor(f"{name}_y", ["batch", WIDTH])])
    choice = g.constant(True, bool)
    return g.model(g.node("If", choice, **branches))


def test_readers_in_subgraph_are_node_that_carries_it() -> None:
    index = GraphIndex(graph_with_branches())
    assert [node.name for node in index.nodes] == ["n0_Tanh", "n1_If"]
    assert [node.name for node in index.readers("t0")] == ["n1_If"]
    assert read_names(index.nodes[1]) == ["w0", "t0"]
    producer = index.producer("t0")
    assert producer is not None
    assert producer.name == "n0_Tanh"
    assert index.producer("x") is None


def test_constants_of_nodes_and_initializers_have_their_values() -> None:
    g = Builder()
    weight = g.constant([2.0])
    held = g.node("Constant", value=numpy_helper.from_array(np.float32([3.0]), "other name"))
    single = g.node("Constant", value_float=4.0)
    g.node("Constant", value_int=5)
    graph = g.model(g.node("Sum", "x", weight, held, single))
    before = graph.SerializeToString()
    constants = GraphIndex(graph).constants
    assert {name: float(values.item()) for name, values in constants.items()} == {
        weight: 2.0,
        held: 3.0,
        single: 4.0,
    }
    assert graph.SerializeToString() == before


def test_initializer_that_is_input_is_not_constant() -> None:
    g = Builder()
    weight = g.constant([2.0])
    inputs = [tensor("x", ["batch", WIDTH]), tensor(weight, [1])]
    assert weight not in GraphIndex(g.model(g.node("Add", "x", weight), inputs=inputs)).constants


def large_product() -> ModelProto:
    g = Builder()
    weight = g.constant(np.full((WIDTH, LARGE_WEIGHT // WIDTH), 0.5))
    return g.model(g.node("MatMul", "x", weight), inputs=[tensor("x", ["batch", WIDTH])])


def test_weightless_view_has_types_without_values() -> None:
    graph = large_product()
    split = split_weights(graph)
    assert list(split.weights) == ["w0"]
    assert split.model.ByteSize() < 1024 < graph.ByteSize()
    assert [value.name for value in without_weights(graph).graph.input] == ["x", "w0"]
    assert element_types(split.model) == element_types(graph)
    assert element_types(graph)["t0"] == TensorProto.FLOAT


def test_session_of_weightless_graph_computes_with_its_weights() -> None:
    session = open_session(split_weights(large_product()), optimization="basic")
    (product,) = run(session, ["t0"], {"x": np.ones((1, WIDTH), np.float32)}, "ones")
    assert product.shape == (1, LARGE_WEIGHT // WIDTH)
    assert np.all(product == 0.5 * WIDTH)
    with pytest.raises(InputError, match="the examples do not fit the graph's inputs"):
        run(session, ["t0"], {"x": np.ones((1, WIDTH + 1), np.float32)}, "ones")
