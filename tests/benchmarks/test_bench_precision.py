"""The parts of the converters' benchmark that decide whether its figures mean anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.converters.load_check import onnxruntime_complaint, tensorrt_complaint
from benchmarks.converters.score import facts, measure
from benchmarks.converters.texts import feeds
from benchmarks.converters.widen import wide, widen
from bertmp import convert
from bertmp.model.config import BertConfig
from tests.export.conftest import POSITIONS, Questions
from tests.export.precision_graphs import Builder
from tests.models import batch, classifier


def test_a_widened_model_has_the_small_ones_activations_twice() -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        labels=("a", "b"),
    )
    small = classifier(config)
    big = type(small)(wide(config)).eval()
    big.load_state_dict(widen(small.state_dict(), layers=2))
    seen: dict[str, torch.Tensor] = {}
    for name, model in (("small", small), ("big", big)):
        block = model.bert.encoder.layer[0]
        block.register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: out}))
        with torch.inference_mode():
            model(**batch(50))
    torch.testing.assert_close(seen["big"], seen["small"].repeat_interleave(2, dim=-1), atol=1e-4, rtol=1e-4)
    weights = big.bert.encoder.layer[0].output.dense.weight.detach()
    before = small.bert.encoder.layer[0].output.dense.weight.detach()
    assert 0.6 < float(weights.std() / before.std()) < 0.8


@pytest.mark.slow
def test_score_own_conversion_matches_reference(questions: Questions, tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    texts = questions.texts.read_text(encoding="utf-8").splitlines()
    data.write_text("".join(f"HUM\t{text}\n" for text in texts), encoding="utf-8")
    reference = tmp_path / "reference.npy"
    graph = questions.bundle / "model.onnx"
    assert measure(str(graph), str(data), 4, str(reference)) == {"texts": 9}
    made = convert(graph, questions.bundle / "scored.onnx")
    for rounded in (False, True):
        out = str(tmp_path / "out.npy")
        found = measure(str(made.graph), str(data), 4, out, str(reference), rounded)
        assert 0 < found["mean_error"] < found["max_error"] < 0.1
        assert (found["label_flips"], found["not_finite"]) == (0, 0)
    assert facts(made.graph)["casts"] == made.casts + 1  # the graph's own, of the mask
    assert onnxruntime_complaint(made.graph) == tensorrt_complaint(made.graph) == ""


def test_the_texts_have_the_extremes(questions: Questions) -> None:
    shapes = [
        feed["ids"].shape for feed in feeds(questions.bundle, questions.texts, 4, ("ids", "mask", "types"))
    ]
    shortest, longest = shapes[-4][1], shapes[-1][1]
    assert shapes[-4:] == [(1, shortest), (1, longest), (1, longest), (2, longest)]
    assert longest == POSITIONS
    assert np.all(np.diff([shape[1] for shape in shapes[:-4]]) >= 0)


def test_a_graph_that_does_not_load_has_a_reason(tmp_path: Path) -> None:
    g = Builder()
    g.node("Foreign", "x", domain="elsewhere", out="y")
    onnx.save(g.model("y", domains=["elsewhere"]), tmp_path / "graph.onnx")
    assert "Foreign" in onnxruntime_complaint(tmp_path / "graph.onnx")
    assert "not found" in tensorrt_complaint(tmp_path / "graph.onnx")
