"""The inspector's account against the verification.

The accounts here are written after NVIDIA's documentation of the inspector's JSON: an engine's own was not
seen, since it takes a GPU to load one (see tests/gpu/test_engine.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertmp.export.engine.builders import Toolchain
from bertmp.export.engine.engine_options import EngineOptions
from bertmp.export.engine.supervisor import Job
from bertmp.export.engine.verify import LayerTensor, ParsedLayer, Verification, verify_network
from bertmp.export.engine.worker import EngineLayer, compare, inspect_engine, read_layers
from bertmp.export.precision.plan import NodePlan, PrecisionPlan

PLAN = PrecisionPlan(
    "",
    (
        NodePlan("product", "MatMul", "", "fp16"),
        NodePlan("sum", "Add", "", "fp16"),
        NodePlan("norm", "LayerNormalization", "", "fp32"),
        NodePlan("mask", "Cast", "", "fp16"),
        NodePlan("shape", "Shape", "", "integer"),
    ),
)


def verification() -> Verification:
    def layer(node: str, kind: str, dtype: str) -> ParsedLayer:
        tensors = (LayerTensor(f"{node}.in", dtype, (-1,)), LayerTensor(f"{node}.out", dtype, (-1,)))
        return ParsedLayer(node, kind, node, tensors[:1], tensors[1:])

    return verify_network(
        PLAN,
        [
            layer("product", "MATRIX_MULTIPLY", "HALF"),
            layer("sum", "ELEMENTWISE", "HALF"),
            layer("norm", "NORMALIZATION", "FLOAT"),
            layer("mask", "CAST", "HALF"),
        ],
    )


def recorded(name: str, datatype: str, *nodes: str) -> dict[str, Any]:
    """A layer as the inspector describes it with detailed verbosity."""
    tensor = {"Name": "t", "Location": "Device", "Dimensions": [1, 8], "Format/Datatype": datatype}
    return {
        "Name": name,
        "LayerType": "kgen",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "TacticName": "some_kernel",
        "StreamId": 0,
        "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def test_layers_are_read_with_their_nodes_and_types() -> None:
    account = {
        "Layers": [
            recorded("fused", "Row major linear FP16 format", "product", "sum"),
            recorded("alone", "Float", "norm"),
            recorded("ints", "Int64", "shape"),
            "a layer without details",
        ],
        "Bindings": ["input_ids", "logits"],
    }
    assert read_layers(account) == [
        EngineLayer("fused", "kgen", ("product", "sum"), ("HALF",)),
        EngineLayer("alone", "kgen", ("norm",), ("FLOAT",)),
        EngineLayer("ints", "kgen", ("shape",), ()),
        EngineLayer("a layer without details", "", (), ()),
    ]


def test_an_engine_as_planned_agrees() -> None:
    layers = read_layers(
        {"Layers": [recorded("a", "Half", "product", "sum"), recorded("b", "Float", "norm")]}
    )
    found = compare(verification(), layers)
    assert found.violations == ()
    assert (found.layers, found.seen, found.unseen, found.mixed) == (2, 3, ("mask",), ())


def test_a_layer_of_another_type_than_its_nodes_is_a_violation() -> None:
    layers = read_layers(
        {"Layers": [recorded("a", "Float", "product", "sum"), recorded("b", "Half", "norm")]}
    )
    found = compare(verification(), layers)
    assert found.violations == (
        "product, sum: planned fp16, but layer 'a' of the engine has FLOAT",
        "norm: planned fp32, but layer 'b' of the engine has HALF",
    )


def test_fusions_across_types_are_listed_and_not_judged() -> None:
    layers = read_layers(
        {
            "Layers": [
                recorded("both", "Half", "sum", "norm"),
                recorded("with its casts", "Half", "precision_cast/x", "norm"),
                recorded("masked", "Half", "mask", "sum"),
            ]
        }
    )
    found = compare(verification(), layers)
    assert found.violations == ()
    assert found.mixed == ("both", "with its casts", "masked")


def test_without_a_gpu_it_says_so() -> None:
    tools = Toolchain("tensorrt-rtx", "1", None)
    job = Job("g.onnx", None, ".", EngineOptions(Path("g.onnx")))
    assert inspect_engine(tools, None, job, verification(), None) == {
        "run": False,
        "reason": "no GPU: the inspector needs the engine loaded",
    }
