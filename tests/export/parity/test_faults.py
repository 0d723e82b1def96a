"""Faults of a graph that no hash gives away: each is found at its stage and, where it has one, its block."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from bertmp import export_checkpoint, parity
from bertmp.export.bundle import Manifest
from bertmp.export.parity.result import ParityReport
from tests.export.conftest import Questions
from tests.export.parity_bundles import adopt

LAYER = 3
TEXTS = 120


@pytest.fixture(scope="module")
def sound(questions: Questions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The question classifier's bundle with both graphs; not to be written to."""
    return export_checkpoint(questions.checkpoint, tmp_path_factory.mktemp("sound") / "bundle").bundle


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def data(trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.tsv"
    lines = (trec / "test.tsv").read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line}\n" for line in lines[:TEXTS]), encoding="utf-8")
    return path


def plant(bundle: Path, file: str, fault: Callable[[ModelProto], None]) -> None:
    """Changes one of a bundle's graphs and the manifest with it."""
    graph = onnx.load(bundle / file)
    fault(graph)
    onnx.save(graph, bundle / file)
    adopt(bundle)


def weight_of_layer(graph: ModelProto) -> None:
    """A weight matrix of layer 3 is 1 % larger."""
    [weights] = [
        tensor
        for tensor in graph.graph.initializer
        if f"layer.{LAYER}.intermediate.dense.weight" in tensor.name
    ]
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array((values * 1.01).astype(values.dtype), weights.name))


def epsilon(graph: ModelProto) -> None:
    """Every LayerNorm adds 1e-5 to the variance instead of 1e-12."""
    changed = 0
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f, changed = 1e-5, changed + 1
    assert changed


def mask(graph: ModelProto) -> None:
    """The scores of padding get -10."""
    [constant] = [tensor for tensor in graph.graph.initializer if tensor.name == "bert/Mul/constant"]
    constant.CopyFrom(numpy_helper.from_array(np.float32(-10).reshape(()), constant.name))


def segments(graph: ModelProto) -> None:
    """All tokens are in the first segment."""
    [gather] = [node for node in graph.graph.node if "token_type_embeddings" in node.name]
    assert gather.input[1] == "token_type_ids"
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    graph.graph.initializer.append(zero)
    dropped = helper.make_node("Mul", ["token_type_ids", "zero"], ["no_segments"], name="no_segments")
    graph.graph.node.insert(list(graph.graph.node).index(gather), dropped)
    gather.input[1] = "no_segments"


Fault = Callable[[ModelProto], None]


def failed_stages(result: ParityReport) -> list[str]:
    return list(dict.fromkeys(gate.stage for gate in result.failed_gates))


def test_the_sound_bundle_passes(bundle: Path, data: Path) -> None:
    result = parity(bundle, data)
    assert result.verdict == "passed", result.headline()


@pytest.mark.parametrize(
    ("fault", "block"),
    [(weight_of_layer, f"bert.encoder.layer.{LAYER}"), (epsilon, "bert.embeddings"), (mask, "bert")],
    ids=["weight", "epsilon", "mask"],
)
def test_a_fault_of_the_fp32_graph_is_found_at_its_block(
    bundle: Path, data: Path, fault: Fault, block: str
) -> None:
    plant(bundle, "model.onnx", fault)
    result = parity(bundle, data)
    assert failed_stages(result)[0] == "onnx-fp32"
    found = result.stage("onnx-fp32").localisation
    assert found is not None
    assert found.block == block


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (weight_of_layer, f"bert.encoder.layer.{LAYER}.intermediate.dense.weight"),
        (epsilon, "in bert.embeddings"),
        (mask, "bert/Mul/constant"),
    ],
    ids=["weight", "epsilon", "mask"],
)
def test_a_fault_of_the_fp16_graph_is_found_although_it_is_within_the_limits(
    bundle: Path, data: Path, fault: Fault, where: str
) -> None:
    plant(bundle, "model.fp16.onnx", fault)
    result = parity(bundle, data)
    assert failed_stages(result)[0] == "onnx-fp16"
    [gate] = [gate for gate in result.failed_gates if gate.name == "as_planned"]
    assert where in gate.sentence


@pytest.mark.parametrize("file", ["model.onnx", "model.fp16.onnx"])
def test_segments_that_a_graph_drops_are_found(
    questions: Questions, trec: Path, tmp_path: Path, file: str
) -> None:
    checkpoint = Path(shutil.copytree(questions.checkpoint, tmp_path / "pairs"))
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "text_pairs": True}))
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle").bundle
    texts = [line.split("\t")[1] for line in (trec / "test.tsv").read_text().splitlines()[:60]]
    rows = [
        json.dumps({"text": first, "text_pair": second})
        for first, second in zip(texts[::2], texts[1::2], strict=True)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    assert parity(bundle, tmp_path / "pairs.jsonl").verdict == "passed"
    plant(bundle, file, segments)
    result = parity(bundle, tmp_path / "pairs.jsonl")
    stage = "onnx-fp32" if file == "model.onnx" else "onnx-fp16"
    assert failed_stages(result)[0] == stage
    assert result.stage(stage).measures.max_error > 0.05  # type: ignore[union-attr]
    found = result.stage(stage).localisation
    assert found is not None
    assert found.block == "bert.embeddings"


def test_a_converter_of_another_version_is_said(bundle: Path, data: Path) -> None:
    manifest = Manifest.load(bundle)
    entry = manifest.stages["convert"]
    manifest.with_stage("convert", replace(entry, tools={**entry.tools, "onnx": "1.0"})).save(bundle)
    result = parity(bundle, data)
    assert result.verdict == "passed"
    assert "as_planned" not in {gate.name for gate in result.gates}
    assert result.stage("onnx-fp16").details["plan"] == "not applied again: converted by onnx 1.0"
