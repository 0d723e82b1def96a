"""The verification as pure data: what it accepts, what it refuses, and that no layer is overlooked."""

from __future__ import annotations

import pytest

from bertmp.export.engine.verify import (
    LayerTensor,
    ParsedLayer,
    Verification,
    origin,
    plan_by_type,
    summarise,
    verify_network,
)
from bertmp.export.precision.plan import CAST_PREFIX, NodePlan, PrecisionPlan


def layer(name: str, kind: str, inputs: str, outputs: str, node: str | None = None) -> ParsedLayer:
    """A layer whose tensors are written `name:DTYPE name:DTYPE`; its node is its name unless given."""

    def tensors(text: str) -> tuple[LayerTensor, ...]:
        return tuple(LayerTensor(*part.split(":"), (-1, 4)) for part in text.split())

    return ParsedLayer(name, kind, name if node is None else node, tensors(inputs), tensors(outputs))


def plan(*nodes: tuple[str, str, str]) -> PrecisionPlan:
    return PrecisionPlan("", tuple(NodePlan(name, op, "", precision) for name, op, precision in nodes))


NORM = ("norm", "LayerNormalization", "fp32")
PRODUCT = ("product", "MatMul", "fp16")


def judge(verification: Verification) -> dict[str, str]:
    return {node.name: node.status for node in verification.nodes}


def test_network_as_planned_is_verified() -> None:
    layers = [
        layer("weight", "CONSTANT", "", "w:HALF", node=""),
        layer("broadcast", "SHUFFLE", "w:HALF", "w1:HALF", node=""),
        layer("product", "MATRIX_MULTIPLY", "x:HALF w1:HALF", "p:HALF"),
        layer(f"{CAST_PREFIX}norm/in", "CAST", "p:HALF", "q:FLOAT"),
        layer("norm", "NORMALIZATION", "q:FLOAT scale:FLOAT bias:FLOAT", "n:FLOAT"),
        layer("length", "ELEMENTWISE", "i:INT64 j:INT64", "k:INT64", node=""),
    ]
    verification = verify_network(plan(PRODUCT, NORM), layers)
    assert verification.verified
    assert judge(verification) == {"product": "verified", "norm": "verified"}
    assert verification.planned_casts == (f"{CAST_PREFIX}norm/in",)
    assert {item.layer: (item.role, item.nodes) for item in verification.added} == {
        "weight": ("constant", ("product",)),
        "broadcast": ("move", ("product",)),
        "length": ("index", ()),
    }
    assert verification.summary["NORMALIZATION"] == {"FLOAT": 1}
    assert verification.first_failure() == ""


@pytest.mark.parametrize(
    "tensors", ["q:HALF s:FLOAT b:FLOAT", "q:FLOAT s:HALF b:FLOAT", "q:FLOAT s:FLOAT b:HALF"]
)
def test_a_layer_norm_with_any_half_input_is_a_violation(tensors: str) -> None:
    verification = verify_network(plan(NORM), [layer("norm", "NORMALIZATION", tensors, "n:FLOAT")])
    assert judge(verification) == {"norm": "violated"}
    assert "layer 'norm' (NORMALIZATION) has HALF input" in verification.first_failure()


@pytest.mark.parametrize(
    ("node", "made", "says"),
    [
        (
            PRODUCT,
            layer("product", "MATRIX_MULTIPLY", "x:FLOAT w:FLOAT", "p:FLOAT"),
            "has FLOAT input 0 (and 2 more)",
        ),
        (PRODUCT, layer("product", "EINSUM", "x:HALF w:HALF", "p:HALF"), "no MATRIX_MULTIPLY layer of it"),
        (NORM, layer("other", "IDENTITY", "x:HALF", "y:HALF", node=""), "no NORMALIZATION layer of it"),
        (("add", "Add", "fp16"), layer("add", "ELEMENTWISE", "x:FLOAT y:FLOAT", "z:FLOAT"), "planned fp16"),
        (("shape", "Add", "integer"), layer("shape", "ELEMENTWISE", "x:HALF", "z:HALF"), "planned integer"),
    ],
)
def test_violations_name_the_node_and_the_layer(
    node: tuple[str, str, str], made: ParsedLayer, says: str
) -> None:
    verification = verify_network(plan(node), [made])
    assert not verification.verified
    assert verification.first_failure().startswith(f"{node[0]}: ")
    assert says in verification.first_failure()


def test_a_cast_that_the_parser_added_to_an_fp32_node_is_a_violation() -> None:
    layers = [
        layer("helper", "CAST", "scale:HALF", "wide:FLOAT", node=""),
        layer("norm", "NORMALIZATION", "q:FLOAT wide:FLOAT b:FLOAT", "n:FLOAT"),
    ]
    verification = verify_network(plan(NORM), layers)
    assert judge(verification) == {"norm": "violated"}
    assert "the parser added the cast 'helper'" in verification.first_failure()


def test_layers_of_unknown_nodes_and_computing_layers_of_none_are_unaccounted() -> None:
    strange = layer("strange", "ACTIVATION", "x:HALF", "y:HALF")
    nobody = layer("nobody", "ACTIVATION", "x:HALF", "y:HALF", node="")
    verification = verify_network(plan(), [strange, nobody])
    assert len(verification.unaccounted) == 2
    assert not verification.verified
    assert verify_network(plan(), [strange], known=["strange"]).verified


def test_types_may_change_in_a_cast_and_shapes_may_be_asked_of_floats() -> None:
    layers = [
        layer("cast", "CAST", "m:INT64", "f:HALF"),
        layer("shape", "SHAPE", "x:FLOAT", "s:INT64"),
        layer("gone", "CONSTANT", "", "c:HALF", node=""),
    ]
    assert verify_network(
        plan(("cast", "Cast", "fp16"), ("shape", "Shape", "integer"), ("folded", "Mul", "fp16")), layers
    ).verified


def test_a_graph_without_a_plan_is_held_to_the_usual_one() -> None:
    made, others = plan_by_type([("n", "LayerNormalization"), ("s", "Softmax"), ("g", "Gemm"), ("a", "Add")])
    assert {node.name: node.precision for node in made.nodes} == {"n": "fp32", "s": "fp32", "g": "fp16"}
    assert others == {"a"}


def test_where_a_layer_came_from() -> None:
    assert origin("[ONNX Layer: bert/encoder/layer.0/MatMul]") == "bert/encoder/layer.0/MatMul"
    assert origin("[ONNX Layer: odd[0]]") == "odd[0]"
    assert origin("") == ""


def test_summary_counts_by_type_and_precision() -> None:
    layers = [layer("a", "CAST", "x:HALF", "y:FLOAT"), layer("b", "SHAPE", "x:HALF", "y:INT64")]
    assert summarise(layers) == {"CAST": {"HALF/FLOAT": 1}, "SHAPE": {"INT64": 1}}
