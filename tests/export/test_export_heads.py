"""Every head exports: the graph answers like torch, under the names of the contract."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file

from bertmp import export_checkpoint, parity
from bertmp.core.errors import InputError
from bertmp.core.io import sha256_file
from bertmp.export.bundle import Bundle, Manifest
from bertmp.model.checkpoint import copy_tokenizer, load_checkpoint, save_checkpoint
from bertmp.model.config import BertConfig
from bertmp.model.heads import HEADS
from bertmp.serve.deployable import Accepted, inspect_bundle
from bertmp.serve.model_config import cpu_encoder
from tests.export.parity.report_checks import complaints, raw_values
from tests.models import batch, head, small_tokenizer

CONFIG = BertConfig(
    vocab_size=250,
    hidden_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=40,
)
OUTPUTS: dict[str, dict[str, list[Any]]] = {
    "encoder": {"last_hidden_state": ["batch", "length", 48], "pooler_output": ["batch", 48]},
    "classification": {"logits": ["batch", 3]},
    "multi-label-classification": {"logits": ["batch", 3]},
    "regression": {"logits": ["batch", 1]},
    "token-classification": {"logits": ["batch", "length", 3]},
    "pretraining": {
        "prediction_logits": ["batch", "length", 250],
        "seq_relationship_logits": ["batch", 2],
    },
    "masked-lm": {"prediction_logits": ["batch", "length", 250]},
    "next-sentence": {"seq_relationship_logits": ["batch", 2]},
}
CLASSES = ("O", "B-X", "I-X")
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A checkpoint with random weights for a task."""
    folder = tmp_path_factory.mktemp("heads")
    tokenizer = small_tokenizer(folder)

    def make(task: str) -> Path:
        labels = CLASSES if HEADS[task].classes else ("LABEL_0",) if task == "regression" else ()
        config = replace(CONFIG, labels=labels)
        if not (folder / task).is_dir():
            save_checkpoint(folder / task, head(task, config), config, tokenizer)
        return folder / task

    return make


@pytest.fixture(scope="module")
def bundle(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The bundle of a task's checkpoint."""
    folder = tmp_path_factory.mktemp("bundles")

    def make(task: str) -> Path:
        if not (folder / task).is_dir():
            export_checkpoint(checkpoint(task), folder / task)
        return folder / task

    return make


def test_every_head_is_tested_here() -> None:
    assert set(OUTPUTS) == set(HEADS)


def answers(path: Path, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.asarray(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


@torch.no_grad()
def expected(checkpoint: Path, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    found = load_checkpoint(checkpoint).model(**inputs)
    return [x.numpy() for x in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("task", OUTPUTS)
def test_the_graphs_answer_like_torch(task: str, checkpoint: Make, bundle: Make) -> None:
    for rows, length in ((3, 11), (1, 1), (2, 40)):
        inputs = batch(CONFIG.vocab_size, rows, length)
        wanted = expected(checkpoint(task), inputs)
        for whole, half, value in zip(
            answers(bundle(task) / "model.onnx", inputs),
            answers(bundle(task) / "model.fp16.onnx", inputs),
            wanted,
            strict=True,
        ):
            assert whole.shape == half.shape == value.shape
            assert np.abs(whole - value).max() <= 5e-5
            assert half.dtype == np.float32
            assert 0 < np.abs(half - value).max() <= 0.05


@pytest.mark.parametrize("task", OUTPUTS)
def test_outputs_are_those_of_the_contract(task: str, bundle: Make) -> None:
    for name in ("model.onnx", "model.fp16.onnx"):
        graph = onnx.load(bundle(task) / name).graph
        shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in graph.output
        }
        assert shapes == OUTPUTS[task]
        assert {value.type.tensor_type.elem_type for value in graph.output} == {TensorProto.FLOAT}
        inputs = {value.name for value in graph.input}
        assert inputs == {"input_ids", "attention_mask", "token_type_ids"}


@pytest.mark.parametrize("task", OUTPUTS)
def test_the_bundle_says_what_it_is(task: str, bundle: Make) -> None:
    opened = Bundle.open(bundle(task))
    assert opened.task == task
    results = opened.manifest.stages["export"].results
    assert results["outputs"] == list(OUTPUTS[task])
    assert results["newly_initialised"] == results["unused"] == []
    assert opened.labels == (list(CLASSES) if HEADS[task].classes else [])
    config = json.loads((bundle(task) / "config.json").read_text())
    assert config["architectures"] == [HEADS[task].architecture]
    assert config.get("problem_type", "") == HEADS[task].problem


@pytest.mark.parametrize("task", ["pretraining", "masked-lm"])
def test_the_vocabulary_is_stored_once(task: str, bundle: Make) -> None:
    for name in ("model.onnx", "model.fp16.onnx"):
        graph = onnx.load(bundle(task) / name).graph
        tables = [t.name for t in graph.initializer if sorted(t.dims) == sorted((250, 48))]
        assert len(tables) == 1, tables


@pytest.mark.parametrize("task", OUTPUTS)
def test_every_head_is_deployed_with_the_outputs_of_its_graph(task: str, bundle: Make) -> None:
    signature = inspect_bundle(Bundle.open(bundle(task)), Accepted(unverified=True)).signature
    assert (signature.task, signature.pairs) == (task, task == "next-sentence")
    outputs = {entry.name: ["batch", *entry.dims] for entry in cpu_encoder("m", signature).output}
    unknown = {name: [-1 if one == "length" else one for one in dims] for name, dims in OUTPUTS[task].items()}
    assert outputs == unknown


WORDS = ("the", "cat", "sat", "on", "a", "mat", "near", "old", "river", "bank", "and", "saw", "no", "fish")


def examples(task: str, folder: Path) -> Path:
    """A data file for a task, labelled where it has labels."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 9, 24)]
    path = folder / ("data.jsonl" if task == "token-classification" else "data.tsv")
    if task == "token-classification":
        rows = [
            {"tokens": text.split(), "labels": list(rng.choice(CLASSES, len(text.split())))} for text in texts
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path
    if task in ("pretraining", "masked-lm", "next-sentence", "encoder"):
        path = folder / "data.txt"
        path.write_text("\n".join(texts))
        return path
    label = {
        "classification": lambda: str(rng.choice(CLASSES)),
        "multi-label-classification": lambda: ",".join(name for name in CLASSES if rng.random() < 0.5),
        "regression": lambda: f"{rng.normal():.3f}",
    }[task]
    path.write_text("label\ttext\n" + "".join(f"{label()}\t{text}\n" for text in texts))
    return path


@pytest.mark.parametrize("task", OUTPUTS)
def test_parity_compares_every_head(task: str, bundle: Make, tmp_path: Path) -> None:
    """Errors are those of the graphs' own outputs, at the units that the task answers."""
    folder = Path(shutil.copytree(bundle(task), tmp_path / "bundle"))
    result = parity(folder, examples(task, tmp_path))
    assert result.verdict == "passed", result.headline()
    exact, low = result.stage("onnx-fp32").measures, result.stage("onnx-fp16").measures
    assert exact is not None
    assert low is not None
    assert exact.texts == low.texts == 24
    assert exact.max_error < 5e-5 < low.max_error < 0.05
    assert (low.accuracy is not None) == ("classification" in task or task in ("masked-lm", "pretraining"))
    labelled = task not in ("next-sentence", "encoder")
    assert bool(result.stage("onnx-fp16").task_metrics) == labelled
    assert all(metric.non_inferiority.verdict != "worse" for metric in result.stage("onnx-fp16").task_metrics)
    units = {"token-classification": 100, "pretraining": 24, "masked-lm": 24, "encoder": 90}
    assert len(low.row_errors) >= units.get(task, 24)
    assert complaints(json.loads((result.folder / "report.json").read_text())) == []
    assert raw_values((result.folder / "report.html").read_text()) == []
    assert result.block_errors.reason == ""
    assert (result.confusion is not None) == (task in ("classification", "token-classification"))


def change_a_weight(folder: Path, rename: bool = False) -> None:
    """Makes a weight of the FP32 graph 5 % larger, which the manifest does not show."""
    graph = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if "layer.0.output.dense" in tensor.name)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.05, weight.name))
    for number, node in enumerate(graph.graph.node if rename else ()):
        node.name = f"renamed_{number}"
    onnx.save(graph, folder / "model.onnx")
    manifest = Manifest.load(folder)
    entry = manifest.stages["export"]
    entry = replace(entry, outputs={name: Bundle(folder).sha256(name) for name in entry.outputs})
    converted = manifest.stages["convert"]
    converted = replace(converted, inputs={name: Bundle(folder).sha256(name) for name in converted.inputs})
    manifest.with_stage("export", entry).with_stage("convert", converted).save(folder)


def test_a_failure_is_reported_where_its_place_cannot_be_found(bundle: Make, tmp_path: Path) -> None:
    """Somebody else's exporter named the nodes: there is nothing to compare node by node."""
    folder = Path(shutil.copytree(bundle("classification"), tmp_path / "bundle"))
    change_a_weight(folder, rename=True)
    result = parity(folder, examples("classification", tmp_path))
    assert result.verdict == "failed"
    stage = result.stage("onnx-fp32")
    assert stage.localisation is None
    assert "nodes are in both graphs" in stage.details["where it goes wrong"]
    assert "where it goes wrong" in (folder / "parity/report.html").read_text()


def test_labels_are_separated_as_the_option_says(bundle: Make, tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("label\ttext\nO;B-X\tthe cat\nI-X\ta mat\n")
    folder = Path(shutil.copytree(bundle("multi-label-classification"), tmp_path / "bundle"))
    assert parity(folder, data, label_separator=";").stage("onnx-fp16").task_metrics
    with pytest.raises(InputError, match="does not know the label 'O;B-X'"):
        parity(folder, data)


@pytest.mark.parametrize("value", ["nan", "inf", "much"])
def test_values_of_a_regression_are_finite_numbers(value: str, bundle: Make, tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    data.write_text(f"label\ttext\n1.5\tthe cat\n{value}\ta mat\n")
    with pytest.raises(InputError, match=rf"'{value}' is not a number .*line 3"):
        parity(bundle("regression"), data)


def test_what_of_the_texts_is_not_compared_is_said(bundle: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle("masked-lm"), tmp_path / "bundle"))
    (tmp_path / "data.txt").write_text("the cat sat\n" * 600)
    result = parity(folder, tmp_path / "data.txt")
    exact = result.stage("onnx-fp32").measures
    assert exact is not None
    assert exact.texts < 600
    assert f"of {exact.texts} of the 600 texts" in result.note
    (tmp_path / "labelled.tsv").write_text("label\ttext\nO\tthe cat\n")
    assert "labels are not used" in parity(folder, tmp_path / "labelled.tsv").note


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(
            task, marks=() if task in ("classification", "token-classification") else pytest.mark.slow
        )
        for task in OUTPUTS
    ],
)
def test_parity_finds_a_changed_weight_of_every_head(task: str, bundle: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle(task), tmp_path / "bundle"))
    change_a_weight(folder)
    result = parity(folder, examples(task, tmp_path))
    assert ("onnx-fp32", "max_error") in [(gate.stage, gate.name) for gate in result.failed_gates]
    where = result.stage("onnx-fp32").localisation
    assert where is not None
    assert where.block == "bert.encoder.layer.0"
    assert where.node is not None
    assert "output/dense" in where.node.node


def test_a_head_that_the_checkpoint_lacks_is_not_exported(checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no weights for pretraining: cls\.") as caught:
        export_checkpoint(checkpoint("encoder"), tmp_path / "bundle", task="pretraining")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_the_task_overrides_the_configuration_of_a_legacy_checkpoint(
    checkpoint: Make, tmp_path: Path
) -> None:
    source, old = checkpoint("classification"), tmp_path / "old"
    old.mkdir()
    copy_tokenizer(source, old)
    (old / "config.json").write_text((source / "config.json").read_text())
    torch.save(load_file(source / "model.safetensors"), old / "pytorch_model.bin")
    made = export_checkpoint(old, tmp_path / "bundle", task="token-classification", fp16=False)
    assert made.notes == (
        "unused weights of the checkpoint: bert.pooler.dense.bias, bert.pooler.dense.weight",
    )
    opened = Bundle.open(made.bundle)
    assert opened.task == made.task == "token-classification"
    results = opened.manifest.stages["export"].results
    assert results["checkpoint_sha256"] == sha256_file(old / "pytorch_model.bin")
