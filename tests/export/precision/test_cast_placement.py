"""Where the casts stand: as few as can be, and of equal choices the FP32 side."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import MATMUL_OPS
from bertmp.export.precision.apply import apply_plan, inserted_casts
from bertmp.export.precision.cast_placement import Placement, is_placed, place
from bertmp.export.precision.plan import PrecisionPlan
from tests.export.precision_graphs import WIDTH, Builder, chain, extremes, planner_of

FORCED = ("Softmax", "LayerNormalization")


def precisions(plan: PrecisionPlan) -> dict[str, str]:
    return {node.name: node.precision for node in plan.nodes}


def attention(g: Builder, x: str) -> str:
    """A product, a scale, a softmax, a product, a residual sum and a norm, as in an encoder."""
    scores = g.node("Mul", g.product(x), g.constant(0.25))
    mixed = g.product(g.softmax(g.node("Add", scores, g.constant([-1e4] + [0.0] * (WIDTH - 1)))))
    return g.norm(g.node("Add", g.node("Add", mixed, g.drawn(WIDTH)), x))


def test_the_residual_stream_and_the_mask_addition_stay_fp32_at_no_cost() -> None:
    g = Builder()
    graph = g.model(attention(g, attention(g, g.norm("x"))))
    most, fewest = extremes(planner_of(graph))
    assert {node.op for node in most.nodes if node.precision == "fp16"} == {"MatMul"}
    assert {node.op for node in fewest.kept_fp32()} == set(FORCED)
    counts = [len(inserted_casts(apply_plan(graph, plan))) for plan in (most, fewest)]
    # A block's products are cast into and out of, one after the other: no placement does with less.
    assert counts == [8, 8]
    added = next(node for node in most.nodes if node.name == "n3_Add")
    assert added.reasons[0].rule in ("no-cast-saved", "fp32-neighbours")
    assert added.reasons[0].numbers["casts"] == counts[0]


def test_a_tensor_with_many_readers_is_cast_once() -> None:
    g = Builder()
    normed = g.norm("x")
    products = [g.product(normed) for _ in range(3)]
    g.node("Sum", *products, out="y")
    graph = g.model("y")
    _, fewest = extremes(planner_of(graph))
    mixed = apply_plan(graph, fewest)
    assert [node.output[0] for node in mixed.graph.node if node.op_type == "Cast"] == [
        f"{normed}/to_fp16",
        "y",
    ]


def test_what_only_moves_values_runs_low_where_that_costs_nothing() -> None:
    g = Builder()
    turned = g.node("Transpose", g.product("x"), perm=[0, 1])
    plan = planner_of(g.model(g.node("Tanh", turned))).plan()
    assert precisions(plan) == {"n0_MatMul": "fp16", "n1_Transpose": "fp16", "n2_Tanh": "fp32"}


def test_casts_and_shapes_read_any_type() -> None:
    g = Builder()
    made = g.product("x")
    whole = g.node("Cast", made, to=TensorProto.INT64)
    back = g.node("Cast", whole, to=TensorProto.FLOAT)
    graph = g.model(g.product(g.node("Add", g.product(back), g.product(made))))
    plan = planner_of(graph).plan()
    assert precisions(plan)["n1_Cast"] == "integer"
    assert precisions(plan)["n2_Cast"] == "fp16"
    assert len(inserted_casts(apply_plan(graph, plan))) == 2  # x down and the output up


def least_casts(index: GraphIndex, placement: Placement, fp32: set[str], low: set[str]) -> int:
    """The minimum over every choice there is."""
    free = [n.name for n in index.nodes if is_placed(n, index) and n.name not in fp32 | low]

    def casts(above: set[str]) -> int:
        return sum(0 < sum(name in above for name in net) < len(net) for net in placement.nets)

    return min(
        casts(fp32 | {""} | {name for name, up in zip(free, choice, strict=True) if up})
        for choice in product((False, True), repeat=len(free))
    )


@settings(max_examples=60, deadline=None)
@given(
    operators=st.lists(
        st.sampled_from(["MatMul", "LayerNormalization", "Softmax", "Tanh", "Residual", "Bias", "Relu"]),
        min_size=1,
        max_size=10,
    )
)
def test_no_placement_needs_fewer_casts(operators: list[str]) -> None:
    index = GraphIndex(chain(operators))
    fp32 = {node.name for node in index.nodes if node.op_type in FORCED}
    low = {node.name for node in index.nodes if node.op_type in MATMUL_OPS}
    most, fewest = (place(index, fp32, low, side) for side in ("fp32", "low"))
    assert most.casts == fewest.casts == least_casts(index, most, fp32, low)
    assert fewest.fp32 <= most.fp32
