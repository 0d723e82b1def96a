"""Ranges: what tensors become on real text, measured or recorded in training, and which of them was used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper

from bertmp import export_checkpoint
from bertmp.core.errors import InputError
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import blocks_of
from bertmp.export.graph.types import element_types
from bertmp.export.precision.calibration import Calibration, read_calibration
from bertmp.export.precision.plan import PrecisionPlan, RangeRecord
from bertmp.export.precision.ranges import Ranges, measure, record, trained_ranges
from bertmp.model.checkpoint import load_checkpoint
from bertmp.training.stability.activation_ranges import recording, to_json
from tests.export.conftest import Questions
from tests.export.overflowing import LAYER, large_values
from tests.export.precision_graphs import WIDTH, Builder, make_plan, planner_of


def every_tensor(graph: ModelProto, feeds: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """The largest magnitudes, from whole tensors."""
    whole = ModelProto()
    whole.CopyFrom(graph)
    kinds = element_types(graph)
    names = [name for node in graph.graph.node for name in node.output if kinds[name] == TensorProto.FLOAT]
    del whole.graph.output[:]
    whole.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ran = [session.run(names, feed) for feed in feeds]
    return {
        name: max(float(np.abs(values[place]).max()) for values in ran) for place, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def calibration(questions: Questions) -> Calibration:
    return read_calibration(questions.texts, questions.bundle, questions.graph())


@pytest.fixture(scope="module")
def trained(questions: Questions, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training would record of the calibration's batches."""

    class Alone:
        def gather(self, value: object) -> list[object]:
            return [value]

    model = load_checkpoint(questions.checkpoint).model
    with torch.no_grad(), recording(model) as seen:
        for feed in calibration.feeds:
            model(*(torch.from_numpy(feed[n]) for n in ("input_ids", "attention_mask", "token_type_ids")))
    assert seen is not None
    file = tmp_path_factory.mktemp("training") / "activation-ranges.json"
    file.write_text(json.dumps(to_json(seen, "texts.txt", Alone())), encoding="utf-8")  # type: ignore[arg-type]
    return file


def test_every_tensor_of_a_real_model_is_measured(questions: Questions, calibration: Calibration) -> None:
    graph, calls = questions.graph(), []
    ranges = measure(graph, calibration, lambda done, total: calls.append((done, total)))
    expected = every_tensor(graph, [dict(feed) for feed in calibration.feeds])
    assert ranges.largest.keys() == expected.keys()
    assert dict(ranges.largest) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert (ranges.origin.source, ranges.origin.texts) == ("calibration", 16)
    assert calls[-1] == (len(calibration.feeds),) * 2


def test_what_overflows_only_inside_is_seen() -> None:
    """Neither input of the product nor of the sum is large."""
    g = Builder()
    product = g.node("MatMul", "x", g.constant(np.full((WIDTH, WIDTH), 100.0)))
    total = g.node("Add", product, product)
    graph = g.model(g.node("Mul", total, g.constant(1e-4)))
    feeds = [{"x": np.full((1, WIDTH), 50.0, np.float32)}]
    ranges = measure(graph, Calibration(feeds, [np.ones((1, WIDTH), bool)], "x", "", 1))
    assert ranges.largest == pytest.approx({"x": 50, product: 40_000, total: 80_000, "t2": 8}, rel=1e-6)
    plan = make_plan(graph, ranges=ranges)
    assert {node.name for node in plan.kept_fp32() if node.reasons[0].rule == "range"} == {
        "n0_MatMul",
        "n1_Add",
        "n2_Mul",
    }


def test_infinities_and_nan_count_as_infinite() -> None:
    g = Builder()
    graph = g.model(g.node("Sqrt", "x"), g.node("Exp", "x"))
    feeds = [{"x": np.array([[-1.0, 200.0, 0, 0, 0, 0, 0, 0]], np.float32)}]
    ranges = measure(graph, Calibration(feeds, [np.ones((1, WIDTH), bool)], "x", "", 1))
    assert ranges.largest == {"x": 200, "t0": np.inf, "t1": np.inf}


def test_headroom_is_told_by_block_and_masks_do_not_count(
    questions: Questions, calibration: Calibration
) -> None:
    graph = questions.graph()
    large_values(graph, 2000)
    plan = planner_of(graph, ranges=measure(graph, calibration)).plan()
    assert plan.ranges is not None
    blocks = dict(plan.ranges.blocks)
    tight = f"bert.encoder.layer.{LAYER}"
    assert set(blocks) >= {"bert.embeddings", "bert.pooler", "classifier", tight}
    assert min(blocks, key=blocks.__getitem__) == tight
    assert 4 < blocks.pop(tight) < 20
    assert min(blocks.values()) > 50  # the mask's -10000 would make it 6.5


def test_blocks_of_graphs_that_do_not_name_modules() -> None:
    g = Builder()
    graph = g.model(g.softmax(g.product(g.norm(g.product("x")))))
    assert list(blocks_of(graph).values()) == ["segment 0", "segment 0", "segment 1", "segment 1"]
    for node, name in zip(
        graph.graph.node,
        (
            "/bert/embeddings/Add",
            "/bert/encoder/layer.0/output/LayerNorm/Pow",
            "/encoder/layer/1/Add",
            "/Gemm",
        ),
        strict=True,
    ):
        node.name = name
    assert list(blocks_of(graph).values())[:3] == [
        "bert.embeddings",
        "bert.encoder.layer.0",
        "encoder.layer.1",
    ]


def test_a_block_without_large_numbers_has_endless_headroom() -> None:
    g = Builder()
    graph = g.model(g.product("x"))
    ranges = Ranges({"t0": 0.0}, RangeRecord("calibration", "x", "", 1))
    assert record(ranges, GraphIndex(graph), 65504.0).blocks == {"segment 0": float("inf")}


def test_ranges_of_training_are_those_of_the_graphs_tensors(
    trained: Path, questions: Questions, calibration: Calibration
) -> None:
    graph = questions.graph()
    found, expected = trained_ranges(trained, graph), measure(graph, calibration).largest
    assert (found.origin.source, found.origin.texts, found.origin.file) == ("training", 0, str(trained))
    layer = f"bert/encoder/layer.{LAYER}"
    for name in (
        f"{layer}/attention/self/value/Add_output",
        f"{layer}/attention/self/Transpose_1_output",
        f"{layer}/attention/self/Reshape_3_output",
        f"{layer}/output/Add_output",
        f"{layer}/output/LayerNorm/LayerNormalization_output",
        "bert/embeddings/Add_1_output",
        "logits",
    ):
        assert found.largest[name] == pytest.approx(expected[name], rel=1e-3), name
    for name, largest in found.largest.items():
        assert largest >= 0.999 * expected.get(name, 0), name


def test_export_uses_them_and_says_so(trained: Path, questions: Questions, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(questions.checkpoint, tmp_path / "checkpoint"))
    data = json.loads(trained.read_text(encoding="utf-8"))
    module = f"bert.encoder.layer.{LAYER}.attention.self.value"
    data["modules"][module]["max_abs"] = 40_000.0
    (checkpoint / "activation-ranges.json").write_text(json.dumps(data), encoding="utf-8")

    result = export_checkpoint(checkpoint, tmp_path / "bundle")
    plan = PrecisionPlan.load(result.bundle / "precision-plan.json")
    assert plan.ranges is not None
    assert plan.ranges.source == "training"
    assert plan.ranges.blocks[f"bert.encoder.layer.{LAYER}"] == pytest.approx(65504 / 40_000, rel=0.01)
    kept = {node.name for node in plan.kept_fp32() if any(r.rule == "range" for r in node.reasons)}
    assert f"bert/encoder/layer.{LAYER}/attention/self/value/MatMul" in kept
    assert (
        json.loads((result.bundle / "manifest.json").read_text())["stages"]["convert"]["results"]["ranges"][
            "source"
        ]
        == "training"
    )


@pytest.mark.parametrize("content", ['{"format": 1, "modules": {"bert": 3}}', '{"format": 9}', "[1]", "{"])
def test_damaged_ranges_are_refused(content: str, questions: Questions, tmp_path: Path) -> None:
    (tmp_path / "activation-ranges.json").write_text(content)
    with pytest.raises(InputError, match=r"activation ranges|not a JSON file"):
        trained_ranges(tmp_path / "activation-ranges.json", questions.graph())


def test_the_graph_is_left_as_it_is(questions: Questions, calibration: Calibration) -> None:
    graph = questions.graph()
    before = graph.SerializeToString()
    measure(graph, calibration)
    assert graph.SerializeToString() == before
    onnx.checker.check_model(graph, full_check=True)
