"""What holds for every graph of encoder operators: valid, idempotent, no cast too many, types kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from bertmp.export.graph.types import LOW_TYPES, element_types
from bertmp.export.precision.apply import apply_plan, inserted_casts
from bertmp.export.precision.plan import Target
from tests.export.precision_graphs import WIDTH, Builder, planner_of, run, session

FLOAT = TensorProto.FLOAT


def decomposed_norm(g: Builder, x: str) -> str:
    axis = g.constant([-1], np.int64)
    centred = g.node("Sub", x, g.node("ReduceMean", x, axis))
    variance = g.node("ReduceMean", g.node("Pow", centred, g.constant(2.0)), axis)
    root = g.node("Sqrt", g.node("Add", variance, g.constant(1e-5)))
    return g.node("Mul", g.node("Div", centred, root), g.drawn(WIDTH))


def gelu(g: Builder, x: str) -> str:
    erf = g.node("Erf", g.node("Mul", x, g.constant(2**-0.5)))
    half = g.node("Constant", value=numpy_helper.from_array(np.float32(0.5)))
    return g.node("Mul", g.node("Mul", x, half), g.node("Add", erf, g.constant(1.0)))


def rounded(g: Builder, x: str) -> str:
    """To whole numbers and back, as masks come in."""
    return g.node("Cast", g.node("Cast", x, to=TensorProto.INT64), to=FLOAT)


def guarded(g: Builder, x: str) -> str:
    """What the exporter writes behind a softmax."""
    return g.node("Where", g.node("IsNaN", x), g.constant(0.0), x)


def reshaped(g: Builder, x: str) -> str:
    parts = g.node("Reshape", x, g.constant([0, 2, WIDTH // 2], np.int64))
    return g.node("Reshape", parts, g.node("Shape", x))


def pooled(g: Builder, x: str) -> str:
    total = g.node("ReduceMean", x, g.constant([-1], np.int64), keepdims=1)
    return g.node("Sub", x, total)


ONE: dict[str, Callable[[Builder, str], str]] = {
    "product": lambda g, x: g.product(x),
    "norm": lambda g, x: g.norm(x),
    "decomposed norm": decomposed_norm,
    "softmax": lambda g, x: g.softmax(x),
    "masked softmax": lambda g, x: g.softmax(g.node("Add", x, g.constant([-3.4e38] + [0.0] * (WIDTH - 1)))),
    "tanh": lambda g, x: g.node("Tanh", x),
    "gelu": gelu,
    "bias": lambda g, x: g.node("Add", x, g.drawn(WIDTH)),
    "rounded": rounded,
    "identity": lambda g, x: g.node("Cast", x, to=FLOAT, out=f"identity{len(g.nodes)}"),
    "guarded": guarded,
    "reshaped": reshaped,
    "pooled": pooled,
}
TWO = {
    "sum": lambda g, x, y: g.node("Add", x, y),
    "mean": lambda g, x, y: g.node("Mul", g.node("Add", x, y), g.constant(0.5)),
    "choice": lambda g, x, y: g.node("Where", g.node("Greater", x, y), x, y),
}


def keeps_type(node: NodeProto) -> bool:
    """Whether it is a cast from FP32 to FP32, which may become one that we need not insert."""
    return node.op_type == "Cast" and "identity" in node.output[0]


@st.composite
def graphs(draw: st.DrawFn) -> ModelProto:
    """A graph over `x`, FP32 `[batch, WIDTH]`, whose nodes read any tensors before them."""
    g = Builder(draw(st.integers(0, 2**16)))
    tensors = ["x"]
    for kind in draw(st.lists(st.sampled_from([*ONE, *TWO]), min_size=1, max_size=8)):
        first = draw(st.sampled_from(tensors[-3:]))
        if kind in ONE:
            tensors.append(ONE[kind](g, first))
        else:
            tensors.append(TWO[kind](g, first, draw(st.sampled_from(tensors))))
    others = draw(st.lists(st.sampled_from(tensors[1:]), max_size=2, unique=True))
    return g.model(*dict.fromkeys((tensors[-1], *others)))


@settings(max_examples=120, deadline=None)
@given(graph=graphs(), side=st.sampled_from(["fp32", "low"]))
def test_converted_graphs_are_valid_and_answer_alike(graph: ModelProto, side: str) -> None:
    planner = planner_of(graph)
    plan = planner.plan(prefer=side)  # type: ignore[arg-type]
    mixed = apply_plan(graph, plan)
    onnx.checker.check_model(mixed, full_check=True)
    assert apply_plan(mixed, plan) is mixed
    kinds = [[(out.name, out.type) for out in session(made).get_outputs()] for made in (graph, mixed)]
    assert kinds[0] == kinds[1]
    if not any(node.op_type in ("Greater", "Cast") for node in graph.graph.node):  # those may jump
        x = np.random.default_rng(0).normal(size=(5, WIDTH)).astype(np.float32)
        expected, answered = run(graph, x), run(mixed, x)
        assert np.abs(expected - answered).max() <= 0.05 * max(1.0, np.abs(expected).max())


@settings(max_examples=120, deadline=None)
@given(graph=graphs(), target=st.sampled_from(["fp16", "bf16"]), side=st.sampled_from(["fp32", "low"]))
def test_there_is_no_cast_too_many(graph: ModelProto, target: Target, side: str) -> None:
    before = graph.SerializeToString()
    planner = planner_of(graph, target=target)
    plan = planner.plan(prefer=side)  # type: ignore[arg-type]
    mixed = apply_plan(graph, plan)
    assert graph.SerializeToString() == before
    assert apply_plan(graph, plan).SerializeToString() == mixed.SerializeToString()

    inserted = inserted_casts(mixed)
    writers = {name: node for node in mixed.graph.node for name in node.output}
    directions = [(node.input[0], node.attribute[0].i) for node in inserted]
    assert len(directions) == len(set(directions))
    for node in inserted:
        source = writers.get(node.input[0])
        # Behind a cast of the graph to whole numbers stands another of the graph's own, for both types.
        assert source is None or source.op_type != "Cast" or source.attribute[0].i == TensorProto.INT64
        readers = [reader for reader in mixed.graph.node if node.output[0] in reader.input]
        assert all(reader.op_type != "Cast" for reader in readers)
    if not any(keeps_type(node) for node in graph.graph.node):
        other = planner.plan(prefer="low" if side == "fp32" else "fp32")  # type: ignore[arg-type]
        assert len(inserted_casts(apply_plan(graph, other))) == len(inserted)


@settings(max_examples=60, deadline=None)
@given(graph=graphs(), target=st.sampled_from(["fp16", "bf16"]))
def test_every_node_runs_as_planned_and_every_fp32_node_says_why(graph: ModelProto, target: Target) -> None:
    plan = planner_of(graph, target=target).plan()
    mixed = apply_plan(graph, plan)
    types = element_types(mixed)
    nodes = {node.name: node for node in mixed.graph.node}
    low = LOW_TYPES[target].element
    for planned in plan.nodes:
        written = {types[name] for name in nodes[planned.name].output} & {FLOAT, low}
        if planned.precision == "fp32":
            assert written <= {FLOAT}
            assert all(reason.sentence for reason in planned.reasons)
            assert planned.reasons
        else:
            assert not planned.reasons
            assert written <= {low}
    assert all(
        planned.precision == "fp32"
        for planned in plan.nodes
        if planned.op in ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt")
    )
