"""The operator Attention: taken apart to the same results, its softmax and mask in FP32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from bertmp import convert, explain
from bertmp.export.graph.attention import take_attention_apart
from bertmp.export.graph.loading import read_graph
from bertmp.export.lint.findings import Finding
from tests.export.precision_graphs import Builder, session, tensor

HEADS, WIDTH = 4, 16
LOWEST = float(np.finfo(np.float32).min)


def attention(mask: int | None = None, *, flat: bool = False, **attributes: Any) -> ModelProto:
    """One Attention; its inputs are q, k, v and, of type `mask`, m."""
    shape: tuple[int | str, ...] = ("batch", HEADS, "length", WIDTH)
    if flat:
        shape = ("batch", "length", HEADS * WIDTH)
        attributes |= {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    inputs = [tensor(name, shape) for name in "qkv"]
    if mask is not None:
        inputs.append(tensor("m", ("batch", 1, "length", "length"), mask))
    g = Builder()
    out = g.node("Attention", *(value.name for value in inputs), **attributes)
    graph = g.model(out, inputs=inputs, opset=23)
    graph.graph.output[0].CopyFrom(tensor(out, shape))
    return graph


def feeds(mask: int | None = None, *, flat: bool = False) -> dict[str, np.ndarray]:
    """Three rows: all seen, the last three tokens hidden, everything hidden."""
    rng = np.random.default_rng(1)
    shape = (3, 7, HEADS * WIDTH) if flat else (3, HEADS, 7, WIDTH)
    made: dict[str, np.ndarray] = {name: rng.normal(size=shape).astype(np.float32) for name in "qkv"}
    if mask is not None:
        seen = np.ones((3, 1, 7, 7), bool)
        seen[1, :, :, 4:] = seen[2] = False
        made["m"] = seen if mask == TensorProto.BOOL else np.where(seen, 0, LOWEST).astype(np.float32)
    return made


MASKS = pytest.mark.parametrize(
    "mask", [None, TensorProto.FLOAT, TensorProto.BOOL], ids=["no mask", "numbers", "Boolean"]
)


class TestTakingApart:
    @MASKS
    @pytest.mark.parametrize("flat", [False, True], ids=["heads apart", "heads together"])
    @pytest.mark.parametrize("scale", [None, 0.1])
    def test_the_results_stay_the_same(self, mask: int | None, flat: bool, scale: float | None) -> None:
        graph = attention(mask, flat=flat, **({"scale": scale} if scale else {}))
        before = session(graph).run(None, feeds(mask, flat=flat))[0]
        notes: list[str] = []
        take_attention_apart(graph, notes.append)
        onnx.checker.check_model(graph, full_check=True)
        assert "Attention" not in {node.op_type for node in graph.graph.node}
        assert len(notes) == 1
        after = session(graph).run(None, feeds(mask, flat=flat))[0]
        assert np.abs(after - before).max() < 1e-6

    @pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 20.0}])
    def test_others_stay_whole_and_fp32(self, attributes: dict[str, Any], tmp_path: Path) -> None:
        onnx.save(attention(**attributes), tmp_path / "in.onnx")
        converted = convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
        node = next(node for node in converted.planned.plan.nodes if node.op == "Attention")
        assert node.precision == "fp32"
        assert "has a softmax that cannot be taken out" in node.reasons[0].sentence

    def test_masks_used_by_several_are_looked_at_once(self, tmp_path: Path) -> None:
        graph = attention(TensorProto.BOOL)
        again = helper.make_node("Attention", ["t0", "k", "v", "m"], ["y"], name="second")
        graph.graph.node.append(again)
        graph.graph.output[0].name = "y"
        onnx.save(graph, tmp_path / "in.onnx")
        operators = [node.op_type for node in read_graph(tmp_path / "in.onnx").graph.node]
        assert operators.count("Softmax") == 2
        assert operators.count("ReduceMax") == 1


class TestConversion:
    @MASKS
    def test_softmax_and_mask_are_fp32(self, mask: int | None, tmp_path: Path) -> None:
        onnx.save(attention(mask), tmp_path / "in.onnx")
        result = convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
        plan = {node.op: node.precision for node in result.planned.plan.nodes}
        assert plan["Softmax"] == "fp32"
        assert plan["MatMul"] == "fp16"
        given = feeds(mask)
        before, after = (
            session(onnx.load(file)).run(None, given)[0] for file in (tmp_path / "in.onnx", result.graph)
        )
        assert np.abs(after - before).max() < 0.01

    def test_scores_beyond_fp16_before_they_are_scaled(self, tmp_path: Path) -> None:
        """Queries and keys of some hundreds: their products pass 65504, the scores do not."""
        onnx.save(attention(scale=1e-4), tmp_path / "in.onnx")
        result = convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
        given = feeds()
        large = given | {name: given[name] * 300 for name in "qk"}
        before, after = (
            session(onnx.load(file)).run(None, large)[0] for file in (tmp_path / "in.onnx", result.graph)
        )
        assert np.abs(after - before).max() < 0.02


def test_an_encoder_of_it_converts_with_texts_and_without(tmp_path: Path) -> None:
    """Its nodes are named after the tensors that they write, as some exporters do."""
    g = Builder()
    table = g.drawn(50, HEADS * WIDTH)
    hidden = g.node("Gather", table, "input_ids", out="hidden")
    seen = g.node(
        "Unsqueeze", g.node("Cast", "attention_mask", to=TensorProto.BOOL), g.constant([1, 2], np.int64)
    )
    parts = [g.node("MatMul", hidden, g.drawn(64, 64, scale=0.2)) for _ in range(3)]
    mixed = g.node("Attention", *parts, seen, q_num_heads=HEADS, kv_num_heads=HEADS, out="mixed")
    inputs = [
        tensor(name, ["batch", "length"], TensorProto.INT64) for name in ("input_ids", "attention_mask")
    ]
    graph = g.model(g.node("MatMul", mixed, g.drawn(64, 3), out="logits"), inputs=inputs, opset=23)
    for node in graph.graph.node:
        node.name = node.output[0]
    onnx.save(graph, tmp_path / "in.onnx")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"])
    )
    (tmp_path / "texts.txt").write_text("a b c\nd e f g h\nb a\n")
    plain = convert(tmp_path / "in.onnx", tmp_path / "plain.onnx")
    calibrated = convert(
        tmp_path / "in.onnx", tmp_path / "calibrated.onnx", calibration=tmp_path / "texts.txt"
    )
    for result in (plain, calibrated):
        assert {node.op: node.precision for node in result.planned.plan.nodes}["Softmax"] == "fp32"
    assert calibrated.planned.plan.search is not None
    assert calibrated.planned.plan.search.error < 0.05


class TestExplain:
    @staticmethod
    def findings(tmp_path: Path, **attributes: Any) -> list[Finding]:
        """About an Attention in FP16 whose mask is made in FP32 from −3.4e38."""
        g = Builder()
        low = [g.node("Cast", name, to=TensorProto.FLOAT16) for name in "qkv"]
        hidden = g.node("Mul", "m", g.constant(LOWEST))
        mask = g.node("Cast", hidden, to=TensorProto.FLOAT16)
        out = g.node("Cast", g.node("Attention", *low, mask, **attributes), to=TensorProto.FLOAT)
        inputs = [tensor(name, ("batch", HEADS, "length", WIDTH)) for name in "qkv"]
        inputs.append(tensor("m", ("batch", 1, "length", "length")))
        onnx.save(g.model(out, inputs=inputs, opset=23), tmp_path / "in.onnx")
        return list(explain(tmp_path / "in.onnx").findings)

    def test_it_finds_the_softmax_and_the_mask_inside(self, tmp_path: Path) -> None:
        assert {"softmax", "mask-constant"} <= {finding.rule for finding in self.findings(tmp_path)}

    def test_a_softmax_that_is_told_to_be_fp32_is_no_finding(self, tmp_path: Path) -> None:
        found = {finding.rule for finding in self.findings(tmp_path, softmax_precision=TensorProto.FLOAT)}
        assert "softmax" not in found
        assert "mask-constant" in found
