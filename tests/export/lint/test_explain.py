"""`bertmp explain` finds in any graph what its conversion has done to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from bertmp import convert, explain
from bertmp.core.errors import InputError
from bertmp.export.lint.findings import Explanation, Finding
from tests.conftest import RunBertmp
from tests.export.conftest import Questions
from tests.export.overflowing import LAYER, large_values
from tests.export.precision_graphs import WIDTH, Builder, tensor

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT
SHAPE = ("batch", WIDTH)


def built(g: Builder, inputs: Sequence[ValueInfoProto], kind: int = FP32) -> ModelProto:
    """The model of a builder whose output `y`, `[batch, WIDTH]`, is of a type."""
    graph = g.model("y", inputs=inputs)
    graph.graph.output[0].CopyFrom(tensor("y", SHAPE, kind))
    return graph


def explained(graph: ModelProto, folder: Path) -> Explanation:
    onnx.save(graph, folder / "graph.onnx")
    return explain(folder / "graph.onnx")


def finding(result: Explanation, rule: str) -> Finding:
    found = [item for item in result.findings if item.rule == rule]
    assert len(found) == 1, f"{rule}: {result.findings}"
    return found[0]


def rules(result: Explanation) -> set[str]:
    return {item.rule for item in result.findings}


@pytest.fixture(scope="module")
def overflowing(questions: Questions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph that overflows in FP16, as it is and as another converter makes it FP16."""
    folder = tmp_path_factory.mktemp("overflowing")
    graph = questions.graph()
    large_values(graph)
    onnx.save(graph, folder / "model.onnx")
    onnx.save(convert_float_to_float16(graph, keep_io_types=True), folder / "other.onnx")
    return folder


def test_overflow_in_a_graph_that_somebody_else_converted(overflowing: Path, questions: Questions) -> None:
    result = explain(overflowing / "other.onnx", calibration=questions.texts, tokenizer=questions.bundle)
    overflow = finding(result, "overflow")
    assert overflow.severity == "error"
    assert result.findings[0] is overflow
    assert overflow.node == f"bert/encoder/layer.{LAYER}/attention/self/value/MatMul"
    headroom = {block.name: block.headroom for block in result.blocks}
    assert headroom[f"bert.encoder.layer.{LAYER}"] == 0
    assert headroom[f"bert.encoder.layer.{LAYER - 1}"] > 4
    assert finding(result, "small-weights").node.endswith(f"layer.{LAYER}/attention/output/dense/MatMul")
    assert len(finding(result, "normalisation").nodes) == 13
    assert len(finding(result, "softmax").nodes) == 6
    json.dumps(result.to_json(), allow_nan=False)


def test_the_fp32_graph_says_what_would_overflow(overflowing: Path, questions: Questions) -> None:
    result = explain(overflowing / "model.onnx", calibration=questions.texts, tokenizer=questions.bundle)
    assert {item.severity for item in result.findings} == {"warning"}
    assert finding(result, "headroom").node.startswith(f"bert/encoder/layer.{LAYER}/attention/self/")
    assert result.nodes["fp32"] > 200
    assert "fp16" not in result.nodes


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_our_own_conversion_has_nothing_to_fix(
    to: Literal["fp16", "bf16"], questions: Questions, tmp_path: Path
) -> None:
    made = convert(questions.bundle / "model.onnx", tmp_path / "low.onnx", precision=to)
    result = explain(made.graph, calibration=questions.texts, tokenizer=questions.bundle)
    assert result.findings == ()
    assert result.casts.total == made.casts
    assert result.casts.spared == ()
    assert result.calibration is not None
    assert result.calibration["texts"] == 16
    assert result.weights[to].subnormal < 0.01
    assert any(tensor.type == to for tensor in result.tensors)
    assert all(block.headroom > 4 for block in result.blocks)
    assert [mask.survives for mask in result.masks] == [True]


def test_casts_that_do_nothing(tmp_path: Path) -> None:
    g = Builder()
    half = g.node("Cast", "x", to=FP16)
    again = g.node("Cast", "x", to=FP16)
    back = g.node("Cast", half, to=FP32)
    weight = g.node("Cast", g.drawn(WIDTH, WIDTH), to=FP16)
    product = g.node("MatMul", again, weight)
    up = g.node("Cast", product, to=FP32)
    moved = g.node("Transpose", up, perm=[1, 0])
    down = g.node("Cast", moved, to=FP16)
    g.node("Cast", g.node("Tanh", down), to=FP32, out="y")
    g.node("Relu", back, out="z")
    casts = (result := explained(g.model("y", "z"), tmp_path)).casts
    assert casts.total == 7
    assert casts.kinds == {"fp32 to fp16": 4, "fp16 to fp32": 3}
    assert [name.split("_")[0] for name in casts.repeated] == ["n1"]
    assert [name.split("_")[0] for name in casts.in_a_row] == ["n2"]
    assert [name.split("_")[0] for name in casts.constant] == ["n3"]
    assert [name.split("_")[0] for name in casts.spared] == ["n1", "n2", "n3", "n5", "n7"]
    assert "round to 16 bits and back" in finding(result, "casts-in-a-row").sentence


def test_a_cast_whose_island_computes_is_needed(tmp_path: Path) -> None:
    g = Builder()
    up = g.node("Cast", "x", to=FP32)
    g.node("Cast", g.softmax(up), to=FP16, out="y")
    result = explained(built(g, [tensor("x", SHAPE, FP16)], FP16), tmp_path)
    assert (result.casts.total, result.casts.spared, rules(result)) == (2, (), set())


def masked(constant: float, kind: int, multiplied: bool) -> ModelProto:
    """Scores with a mask constant added in `kind`, and a softmax in FP32."""
    g = Builder()
    scores, large = "x", g.constant(constant)
    if kind == FP16:
        scores, large = g.node("Cast", "x", to=FP16), g.node("Cast", large, to=FP16)
    keep = g.node("Cast", "mask", to=kind)
    bias = g.node("Mul", keep, large) if multiplied else g.node("Expand", large, g.constant([1, 1], np.int64))
    total = g.node("Add", scores, bias)
    g.node("Softmax", g.node("Cast", total, to=FP32) if kind == FP16 else total, axis=-1, out="y")
    return built(g, [tensor("x", SHAPE), tensor("mask", SHAPE, TensorProto.INT64)])


@pytest.mark.parametrize(
    ("constant", "multiplied", "severity"),
    [
        (-1e4, True, None),
        (-65504.0, True, "warning"),
        (-1e9, False, "warning"),
        (-1e9, True, "error"),
        (float("-inf"), False, "warning"),
    ],
)
def test_mask_constants(constant: float, multiplied: bool, severity: str | None, tmp_path: Path) -> None:
    result = explained(masked(constant, FP16, multiplied), tmp_path)
    assert [mask.value for mask in result.masks] == [constant]
    assert result.masks[0].survives == (severity is None)
    if severity is None:
        assert "mask-constant" not in rules(result)
    else:
        assert finding(result, "mask-constant").severity == severity


def test_a_mask_that_stays_fp32_is_no_finding_in_a_mixed_graph(tmp_path: Path) -> None:
    graph = masked(-3.4e38, FP32, multiplied=True)
    graph.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float16), "half"))
    graph.graph.node.append(helper.make_node("Cast", ["half"], ["unused"], name="unused", to=FP32))
    assert "mask-constant" not in rules(explained(graph, tmp_path))


def test_a_normalisation_that_was_taken_apart_and_cast_inside(tmp_path: Path) -> None:
    g = Builder()
    axes = {"axes": [-1]}
    x = g.node("Cast", "x", to=FP16)
    centred = g.node("Sub", x, g.node("ReduceMean", x, **axes))
    squares = g.node("Mul", centred, centred)
    variance = g.node("Cast", g.node("ReduceMean", squares, **axes), to=FP32)
    root = g.node("Cast", g.node("Sqrt", g.node("Add", variance, g.constant(1e-5))), to=FP16)
    g.node("Div", centred, root, out="y")
    graph = g.model("y", opset=13)
    graph.graph.output[0].type.tensor_type.elem_type = FP16
    found = finding(explained(graph, tmp_path), "decomposed-normalisation")
    assert {name.split("_")[1] for name in found.nodes} == {"ReduceMean", "Sub", "Mul", "Div"}


def test_parts_that_a_conversion_leaves_alone(tmp_path: Path) -> None:
    g = Builder()
    scale, zero = g.constant(0.1), g.constant(0, np.int8)
    quantised = g.node("DequantizeLinear", g.node("QuantizeLinear", "x", scale, zero), scale, zero)
    g.node("Foreign", quantised, domain="elsewhere", out="y")
    result = explained(g.model("y", domains=["elsewhere"]), tmp_path)
    assert rules(result) == {"quantised", "unknown-operator"}
    assert {item.severity for item in result.findings} == {"note"}


def test_a_graph_at_odds_with_itself_is_explained(questions: Questions, tmp_path: Path) -> None:
    g = Builder()
    g.node("Relu", g.node("Cast", "ids", to=FP32), out="y")
    graph = built(g, [tensor("ids", SHAPE, TensorProto.INT64)])
    graph.graph.value_info.append(tensor("t0", SHAPE, FP16))
    onnx.save(graph, tmp_path / "graph.onnx")
    result = explain(tmp_path / "graph.onnx", calibration=questions.texts, tokenizer=questions.bundle)
    assert finding(result, "types").severity == "error"
    assert finding(result, "does-not-load").severity == "error"


def test_what_fp16_does_to_weights(tmp_path: Path) -> None:
    g = Builder()
    huge = g.constant(np.full((WIDTH, WIDTH), 1e6, np.float32).tolist())
    tiny = g.node("MatMul", g.node("MatMul", "x", huge), g.drawn(WIDTH, WIDTH, scale=1e-7))
    g.node("Add", tiny, g.constant(1e-12), out="y")
    graph = g.model("y")
    result = explained(graph, tmp_path)
    assert rules(result) == {"weight-beyond-range", "small-weights", "small-constants"}
    halves: Sequence[TensorProto] = graph.graph.initializer
    for weight in halves:
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = FP16
    result = explained(graph, tmp_path)
    assert finding(result, "weight-beyond-range").severity == "error"
    assert finding(result, "small-weights").node == "n1_MatMul"


def test_the_command(questions: Questions, run_bertmp: RunBertmp, tmp_path: Path) -> None:
    graph = questions.bundle / "model.onnx"
    done = run_bertmp("explain", graph, "--calibration", questions.texts, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["findings"] == []
    assert {block["name"] for block in value["blocks"]} >= {"bert.embeddings", "bert.encoder.layer.5"}
    done = run_bertmp("explain", graph)
    assert "bert.encoder.layer.5" in done.stdout
    assert "nothing to fix" in done.stdout
    (tmp_path / "cut.onnx").write_bytes(graph.read_bytes()[:1000])
    done = run_bertmp("explain", tmp_path / "cut.onnx")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_texts_that_do_not_fit(questions: Questions, tmp_path: Path) -> None:
    g = Builder()
    g.node("Relu", "x", out="y")
    onnx.save(g.model("y"), tmp_path / "graph.onnx")
    with pytest.raises(InputError, match="'x'"):
        explain(tmp_path / "graph.onnx", calibration=questions.texts, tokenizer=questions.bundle)
    ids = Builder()
    ids.node("Cast", "input_ids", to=FP32, out="y")
    onnx.save(built(ids, [tensor("input_ids", SHAPE, TensorProto.INT64)]), tmp_path / "ids.onnx")
    with pytest.raises(InputError, match="tokenizer"):
        explain(tmp_path / "ids.onnx", calibration=questions.texts)
