"""Engines of graphs that others exported and `convert` converted, with the real TensorRT-RTX builder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from bertmp import build_engine, convert
from bertmp.core.errors import InputError
from bertmp.core.io import read_json
from bertmp.export.precision.length_limit import longest_length
from tests.export.engine_graphs import POSITIONS, save_graph
from tests.export.precision_graphs import WIDTH, Builder, tensor

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


class TestLengths:
    def test_default_profiles_end_where_the_graph_does(self, tmp_path: Path) -> None:
        graph = save_graph(tmp_path / "small.onnx")
        result = build_engine(graph, builder="tensorrt-rtx", max_batch=2)
        assert result.profiles[-1].endswith(f"x{POSITIONS}")
        assert any(f"takes at most {POSITIONS} tokens" in warning for warning in result.warnings)

    def test_profiles_beyond_it_are_refused(self, tmp_path: Path) -> None:
        graph = save_graph(tmp_path / "small.onnx")
        with pytest.raises(InputError, match=f"length 100 is beyond the model's {POSITIONS} positions"):
            build_engine(graph, profiles=["1x1:1x8:1x100"], builder="tensorrt-rtx")
        assert not (tmp_path / "small.engine").exists()

    def test_it_is_found_by_running_the_graph(self, tmp_path: Path) -> None:
        graph = save_graph(tmp_path / "small.onnx")
        assert [longest_length(graph, most) for most in (8, POSITIONS, 512)] == [8, POSITIONS, POSITIONS]

    def test_padding_tokens_do_not_hide_it(self, tmp_path: Path) -> None:
        """RoBERTa gives tokens of the padding, 1, no position of their own."""
        g = Builder()
        real = g.node("Cast", g.node("Not", g.node("Equal", "input_ids", g.constant(1, np.int64))), to=7)
        count = g.node("Mul", g.node("CumSum", real, g.constant(1, np.int64)), real)
        position = g.node("Add", count, g.constant(1, np.int64))
        vectors = g.node(
            "Add",
            g.node("Gather", g.drawn(50, WIDTH), "input_ids"),
            g.node("Gather", g.drawn(130, WIDTH), position),
        )
        inputs = [tensor("input_ids", ["batch", "length"], TensorProto.INT64)]
        onnx.save(g.model(g.product(vectors), inputs=inputs), tmp_path / "in.onnx")
        assert longest_length(tmp_path / "in.onnx", 512) == 128

    def test_a_graph_that_does_not_run_here_is_left_to_the_builder(self, tmp_path: Path) -> None:
        g = Builder()
        strange = g.node("Strange", "x", domain="nobody.knows")
        onnx.save(g.model(strange, domains=["nobody.knows"]), tmp_path / "in.onnx")
        assert longest_length(tmp_path / "in.onnx", 512) is None


def classifier(double: bool = False) -> tuple[Builder, list[Any], str]:
    """Token ids to logits, with an attention in between, perhaps in FP64."""
    g = Builder()
    hidden = g.node("Gather", g.drawn(50, WIDTH), "input_ids:0")
    scores = g.node("MatMul", hidden, g.node("Transpose", hidden, perm=[0, 2, 1]))
    if double:
        wide = g.node("Softmax", g.node("Cast", scores, to=TensorProto.DOUBLE), axis=-1)
        weights = g.node("Cast", wide, to=TensorProto.FLOAT)
    else:
        weights = g.softmax(scores)
    first = g.node("Gather", g.node("MatMul", weights, hidden), g.constant(0, np.int64), axis=1)
    logits = g.node("MatMul", first, g.drawn(WIDTH, 3))
    return g, [tensor("input_ids:0", ["batch", "length"], TensorProto.INT64)], logits


def test_inputs_with_one_value_a_text(tmp_path: Path) -> None:
    """TensorFlow's graphs hand the texts' numbers through."""
    g, inputs, logits = classifier()
    numbers = g.node("Identity", "unique_ids_raw_output___9:0", out="unique_ids:0")
    graph = g.model(
        logits, inputs=[*inputs, tensor("unique_ids_raw_output___9:0", ["batch"], TensorProto.INT64)]
    )
    graph.graph.output.append(tensor(numbers, ["batch"], TensorProto.INT64))
    onnx.save(graph, tmp_path / "in.onnx")
    converted = convert(tmp_path / "in.onnx", tmp_path / "half.onnx").graph
    result = build_engine(converted, profiles=["1x1:2x8:4x16"], builder="tensorrt-rtx")
    assert result.verified


def test_fp64_runs_in_fp32_and_that_is_said(tmp_path: Path) -> None:
    g, inputs, logits = classifier(double=True)
    onnx.save(g.model(logits, inputs=inputs), tmp_path / "in.onnx")
    converted = convert(tmp_path / "in.onnx", tmp_path / "half.onnx").graph
    result = build_engine(converted, profiles=["1x1:2x8:4x16"], builder="tensorrt-rtx")
    assert result.summary["SOFTMAX"] == {"FLOAT": 1}
    assert any(warning.startswith("TensorRT has no FP64: 3 nodes") for warning in result.warnings)
    entry = read_json(result.network)["verification"]["nodes"]
    assert next(node for node in entry if node["op"] == "Softmax")["planned"] == "fp32"


def test_an_attention_operator_is_accounted_for(tmp_path: Path) -> None:
    g = Builder()
    hidden = g.node("Gather", g.drawn(50, WIDTH), "input_ids")
    query, key, value = (g.product(hidden) for _ in range(3))
    seen = g.node(
        "Unsqueeze", g.node("Cast", "attention_mask", to=TensorProto.BOOL), g.constant([1, 2], np.int64)
    )
    mixed = g.node("Attention", query, key, value, seen, q_num_heads=2, kv_num_heads=2)
    inputs = [
        tensor(name, ["batch", "length"], TensorProto.INT64) for name in ("input_ids", "attention_mask")
    ]
    onnx.save(g.model(g.product(mixed), inputs=inputs, opset=23), tmp_path / "in.onnx")
    converted = convert(tmp_path / "in.onnx", tmp_path / "half.onnx").graph
    result = build_engine(converted, profiles=["1x1:2x8:4x16"], builder="tensorrt-rtx")
    assert result.verified
    assert result.summary["SOFTMAX"] == {"FLOAT": 1}
    assert result.counts["unaccounted"] == 0
