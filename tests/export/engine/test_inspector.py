"""The inspector's account against the verification.

The accounts here are written after NVIDIA's documentation of the inspector's JSON: an engine's own was not
seen, since it takes a GPU to load one (see tests/gpu/test_engine.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bertmp.core.hardware import Gpu
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
    account: dict[str, Any] = {
        "Layers": [
            recorded("fused", "Row major linear FP16 format", "product", "sum"),
            recorded("alone", "Float", "norm"),
            recorded("ints", "Int64", "shape"),
            "a layer without details",
        ],
        "Bindings": ["input_ids", "logits"],
    }
    assert read_layers([account]) == [
        EngineLayer("fused", "kgen", ("product", "sum"), ("HALF",)),
        EngineLayer("alone", "kgen", ("norm",), ("FLOAT",)),
        EngineLayer("ints", "kgen", ("shape",), ()),
        EngineLayer("a layer without details", "", (), ()),
    ]


def test_an_engine_as_planned_agrees() -> None:
    layers = read_layers(
        [{"Layers": [recorded("a", "Half", "product", "sum"), recorded("b", "Float", "norm")]}]
    )
    found = compare(verification(), layers)
    assert found.violations == ()
    assert (found.layers, found.typed, found.seen, found.unseen) == (2, 2, 3, ("mask",))
    assert found.mixed == ()


def test_a_layer_of_another_type_than_its_nodes_is_a_violation() -> None:
    layers = read_layers(
        [{"Layers": [recorded("a", "Float", "product", "sum"), recorded("b", "Half", "norm")]}]
    )
    found = compare(verification(), layers)
    assert found.violations == (
        "product, sum: planned fp16, but layer 'a' of the engine has FLOAT",
        "norm: planned fp32, but layer 'b' of the engine has HALF",
    )


def test_fusions_across_types_are_listed_and_not_judged() -> None:
    fused = [
        recorded("both", "Half", "sum", "norm"),
        recorded("with its casts", "Half", "precision_cast/x", "norm"),
        recorded("masked", "Half", "mask", "sum"),
    ]
    layers = read_layers([{"Layers": fused}])
    found = compare(verification(), layers)
    assert found.violations == ()
    assert found.mixed == ("both", "with its casts", "masked")


def test_without_a_gpu_it_says_so() -> None:
    tools = Toolchain("tensorrt-rtx", "1", None)
    job = Job("g.onnx", None, ".", EngineOptions(Path("g.onnx")))
    assert inspect_engine(tools, None, job, verification(), None) == {
        "run": False,
        "verified": False,
        "reason": "no GPU: the inspector needs the engine loaded",
    }


NOT_KNOWN = "N/A due to dynamic shapes"


class FakeEngine:
    """An engine with two profiles whose inspector follows the documentation.

    Types are known for the profile of the execution context that the inspector was given, once its shapes
    are set; without one they read "N/A due to dynamic shapes". TensorRT 10 has them in `Format/Datatype`, 11
    in `Datatype` beside `Format`.
    """

    num_io_tensors, num_optimization_profiles = 2, 2

    def __init__(self, version: int, kind: str = "Half", answers: bool = True) -> None:
        self.version, self.kind, self.answers = version, kind, answers
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.execution_context: Any = None

    def get_tensor_name(self, index: int) -> str:
        return ("input_ids", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "input_ids" else "output"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert name == "input_ids"
        return [(1, 1), (8, 16 * (profile + 1)), (32, 32)]

    def create_execution_context(self, strategy: str) -> FakeEngine:
        assert strategy == "user managed"
        return self

    def create_engine_inspector(self) -> FakeEngine:
        return self

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile, self.shapes = profile, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_engine_information(self, layout: str) -> str:
        assert layout == "json"
        known = self.answers and self.execution_context is self and "input_ids" in self.shapes
        layers = []
        for profile in range(2):
            kind = self.kind if known and profile == self.profile else NOT_KNOWN
            layer = recorded(f"product [profile {profile}]", kind, "product", "sum")
            if self.version >= 11:
                for tensor in layer["Inputs"]:
                    tensor["Datatype"] = tensor.pop("Format/Datatype")
                    tensor["Format"] = "Row major linear"
            layers.append(layer)
        return json.dumps({"Layers": layers, "Bindings": ["input_ids", "logits"]})


def inspected(engine: FakeEngine, folder: Path) -> dict[str, Any]:
    module = SimpleNamespace(
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: engine),
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
    )
    (folder / "model.plan").write_bytes(b"plan")
    gpu = Gpu("GPU 0", "8.9", 2**34, "580.65.06")
    job = Job("g.onnx", None, str(folder), EngineOptions(Path("g.onnx"), compute_capability=["8.9"]))
    return inspect_engine(Toolchain("tensorrt", "11.4", module), None, job, verification(), gpu)


@pytest.mark.parametrize("version", [10, 11])
def test_types_of_every_profile_are_read_with_a_context(version: int, tmp_path: Path) -> None:
    found = inspected(FakeEngine(version), tmp_path)
    assert (found["run"], found["verified"], found["reason"]) == (True, True, "")
    assert (found["layers"], found["typed"]) == (2, 2)


@pytest.mark.parametrize("version", [10, 11])
def test_an_engine_in_another_precision_is_found(version: int, tmp_path: Path) -> None:
    found = inspected(FakeEngine(version, "Float"), tmp_path)
    assert not found["verified"]
    assert found["reason"].startswith("product, sum: planned fp16, but layer 'product [profile 0]'")
    assert len(found["violations"]) == 2


@pytest.mark.parametrize("version", [10, 11])
def test_an_inspector_that_names_no_types_verifies_nothing(version: int, tmp_path: Path) -> None:
    found = inspected(FakeEngine(version, answers=False), tmp_path)
    assert (found["run"], found["verified"], found["typed"]) == (True, False, 0)
    assert found["reason"] == "the inspector names no types of its layers"
