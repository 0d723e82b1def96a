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
from bertmp.core.errors import InputError
from bertmp.export.bundle import Manifest
from bertmp.export.parity.gates import DEFAULTS
from bertmp.export.parity.result import ParityReport
from tests.export.conftest import Questions
from tests.export.parity_bundles import adopt

pytestmark = pytest.mark.slow  # a real model of six layers, and parity on each of its faults
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
    [
        (weight_of_layer, f"bert.encoder.layer.{LAYER}"),
        (epsilon, "bert.embeddings"),
        (mask, "bert"),
    ],
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


def test_a_converter_of_another_version_is_compared_all_the_same(bundle: Path, data: Path) -> None:
    manifest = Manifest.load(bundle)
    entry = manifest.stages["convert"]
    manifest.with_stage("convert", replace(entry, tools={**entry.tools, "onnx": "1.0"})).save(bundle)
    assert parity(bundle, data).verdict == "passed"
    plant(bundle, "model.fp16.onnx", weight_of_layer)  # now nobody can say whether the version is why
    result = parity(bundle, data)
    assert result.verdict == "incomplete"
    assert "onnx-fp16 was not checked: its plan was not applied again: onnx 1.0" in result.headline()


def test_a_bundle_without_its_plan_is_incomplete(bundle: Path, data: Path) -> None:
    manifest = Manifest.load(bundle)
    entry = manifest.stages["convert"]
    outputs = {name: sha for name, sha in entry.outputs.items() if name != "precision-plan.json"}
    manifest.with_stage("convert", replace(entry, outputs=outputs)).save(bundle)
    (bundle / "precision-plan.json").unlink()
    assert parity(bundle, data).verdict == "incomplete"


# ---- faults that are in all stages alike


def other_label(bundle: Path) -> None:
    first, second, *rest = (bundle / "labels.txt").read_text().splitlines()
    (bundle / "labels.txt").write_text("\n".join([second, first, *rest]) + "\n")


def cased(bundle: Path) -> None:
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer))


def shorter(bundle: Path) -> None:
    settings = json.loads((bundle / "tokenizer_config.json").read_text())
    (bundle / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 8}))


def fewer_positions(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))


def unused_word(bundle: Path) -> None:
    """The embedding of a word that no question has, in both graphs."""
    for file in ("model.onnx", "model.fp16.onnx"):
        graph = onnx.load(bundle / file)
        [weights] = [one for one in graph.graph.initializer if "word_embeddings" in one.name]
        values = numpy_helper.to_array(weights).copy()
        values[999] = -values[998]
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        onnx.save(graph, bundle / file)


@pytest.mark.parametrize(
    ("fault", "stage", "named"),
    [
        (other_label, "torch-fp32", "labels.txt has DESC, ABBR"),
        (cased, "torch-fp32", "the tokenizer has another vocabulary or normalisation"),
        (shorter, "torch-fp32", "the tokenizer has another maximum length, 8 instead of 64"),
        (
            fewer_positions,
            "torch-fp32",
            "config.json has the max_position_embeddings 32 where the checkpoint has 64",
        ),
        (unused_word, "onnx-fp32", "model.onnx has another bert.embeddings.word_embeddings.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bundle_that_is_not_its_checkpoints_is_found(
    bundle: Path, data: Path, fault: Callable[[Path], None], stage: str, named: str
) -> None:
    fault(bundle)
    adopt(bundle)
    result = parity(bundle, data)
    assert result.verdict == "failed"
    assert failed_stages(result)[0] == stage
    [gate] = [gate for gate in result.failed_gates if gate.name == "as_exported"]
    assert named in gate.sentence


def test_a_gates_file_that_leaves_everything_out_is_incomplete(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    gates = tmp_path / "gates.toml"
    off = "".join(f"{name} = false\n" for name in vars(DEFAULTS["onnx-fp16"]))
    gates.write_text(f"[onnx-fp16]\n{off}")
    result = parity(bundle, data, gates=gates)
    assert result.verdict == "incomplete"
    assert "onnx-fp16 was not checked: the gates file leaves out all its gates" in result.headline()


def test_a_report_that_cannot_be_written_is_refused_before_the_stages(bundle: Path, data: Path) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="not a folder"):
        parity(bundle, data, report=data / "sub", progress=lambda message, *_: said.append(message))
    assert said == []


def test_a_manifest_that_does_not_say_what_was_exported_is_incomplete(bundle: Path, data: Path) -> None:
    manifest = Manifest.load(bundle)
    entry = manifest.stages["export"]
    results = {name: value for name, value in entry.results.items() if name != "checkpoint_sha256"}
    manifest.with_stage("export", replace(entry, results=results)).save(bundle)
    result = parity(bundle, data)
    assert result.verdict == "incomplete"
    assert "does not say which weights were exported" in result.headline()
