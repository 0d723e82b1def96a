"""Export: the FP32 graph answers like torch, the FP16 graph is what its plan says, failures leave nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from bertmp import export_checkpoint
from bertmp.data.tokenizer import Tokenizer
from bertmp.export.bundle import Bundle
from bertmp.export.graph.types import element_types
from bertmp.export.precision.apply import inserted_casts
from bertmp.export.precision.plan import CAST_PREFIX, PrecisionPlan
from bertmp.model.checkpoint import load_checkpoint, save_checkpoint
from bertmp.model.config import ACTIVATIONS, BertConfig
from tests.conftest import RunBertmp
from tests.models import batch, classifier

CONFIG = BertConfig(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=64,
    labels=("no", "perhaps", "yes"),
)


def checkpoint_with(config: BertConfig, minilm: Path, folder: Path) -> Path:
    save_checkpoint(
        folder, classifier(config), config, Tokenizer.load(minilm, config.max_position_embeddings)
    )
    return folder


@pytest.fixture(scope="module")
def checkpoint(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_with(CONFIG, minilm, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("export") / "bundle").bundle


def run_graph(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0])


@torch.no_grad()
def run_torch(checkpoint: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    return load_checkpoint(checkpoint).model(**inputs).numpy()


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 64), (3, 11), (16, 2)])
def test_the_graph_answers_like_torch_at_every_shape(
    rows: int, length: int, checkpoint: Path, bundle: Path
) -> None:
    inputs = batch(CONFIG.vocab_size, rows, length)
    expected = run_torch(checkpoint, inputs)
    assert np.abs(run_graph(bundle / "model.onnx", inputs) - expected).max() <= 5e-5
    half = run_graph(bundle / "model.fp16.onnx", inputs)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - expected).max() <= 0.02


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_exports(activation: str, minilm: Path, tmp_path: Path) -> None:
    folder = checkpoint_with(
        replace(CONFIG, hidden_act=activation, num_hidden_layers=1), minilm, tmp_path / "model"
    )
    result = export_checkpoint(folder, tmp_path / "bundle")
    inputs = batch(CONFIG.vocab_size)
    assert np.abs(run_graph(result.bundle / "model.onnx", inputs) - run_torch(folder, inputs)).max() <= 5e-5


def test_inputs_and_outputs_are_those_of_the_contract(bundle: Path) -> None:
    for name in ("model.onnx", "model.fp16.onnx"):
        graph = onnx.load(bundle / name)
        assert graph.opset_import[0].version == 18
        assert [value.name for value in graph.graph.input] == [
            "input_ids",
            "attention_mask",
            "token_type_ids",
        ]
        for value in graph.graph.input:
            assert value.type.tensor_type.elem_type == TensorProto.INT64
            assert [dim.dim_param for dim in value.type.tensor_type.shape.dim] == ["batch", "length"]
        (logits,) = graph.graph.output
        assert logits.name == "logits"
        assert logits.type.tensor_type.elem_type == TensorProto.FLOAT


def test_layernorm_and_softmax_are_fp32_and_products_are_fp16(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.fp16.onnx")
    types = element_types(graph)
    counts: Counter[str] = Counter()
    for node in graph.graph.node:
        counts[node.op_type] += 1
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
        if node.op_type in ("MatMul", "Gemm"):
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}
    assert counts["LayerNormalization"] == 5
    assert counts["Softmax"] == 2
    assert counts["MatMul"] + counts["Gemm"] == 2 * 8 + 2
    # From products into and out of every normalisation and softmax, and the logits.
    assert len(inserted_casts(graph)) == 2 * (5 + 2) + 1


def test_every_node_is_planned_and_every_fp32_node_has_its_reason(bundle: Path) -> None:
    plan = PrecisionPlan.load(bundle / "precision-plan.json")
    graph = onnx.load(bundle / "model.fp16.onnx")
    own = [node.name for node in graph.graph.node if not node.name.startswith(CAST_PREFIX)]
    assert [node.name for node in plan.nodes] == own
    kept = Counter(node.op for node in plan.kept_fp32())
    assert (kept["LayerNormalization"], kept["Softmax"]) == (5, 2)
    assert not kept.keys() & {"MatMul", "Gemm"}
    for node in plan.kept_fp32():
        assert node.reasons
        assert all(reason.sentence for reason in node.reasons)
    assert all(not node.reasons for node in plan.nodes if node.precision != "fp32")
    names = {node.name for node in plan.nodes}
    assert {
        "bert/encoder/layer.1/attention/self/query/MatMul",
        "bert/embeddings/LayerNorm/LayerNormalization",
    } <= names


def test_weights_are_stored_once_and_in_half_the_space(bundle: Path) -> None:
    whole, half = ((bundle / name).stat().st_size for name in ("model.onnx", "model.fp16.onnx"))
    assert half / whole <= 0.51
    graph = onnx.load(bundle / "model.fp16.onnx")
    full = [t for t in graph.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert any(".LayerNorm." in t.name for t in full)
    assert max(np.prod(t.dims) for t in full) < 4096
    names = [t.name for t in graph.graph.initializer]
    assert len(names) == len(set(names))


def test_the_graph_says_nothing_of_the_machine_that_made_it(bundle: Path) -> None:
    for name in ("model.onnx", "model.fp16.onnx"):
        data = (bundle / name).read_bytes()
        assert os.fsencode(os.getcwd()) not in data
        assert b"site-packages" not in data
        assert b"stack_trace" not in data


def test_two_exports_are_the_same_bytes(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    again = export_checkpoint(checkpoint, tmp_path / "again").bundle
    for name in ("model.onnx", "model.fp16.onnx", "precision-plan.json"):
        assert (again / name).read_bytes() == (bundle / name).read_bytes()


def test_the_bundle_knows_what_it_was_made_of(checkpoint: Path, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.labels == ["no", "perhaps", "yes"]
    assert opened.max_positions == 64
    stage = opened.stage("export", "bertmp export")
    assert stage.settings["checkpoint"] == str(checkpoint)
    assert opened.stage("convert", "bertmp export").outputs.keys() == {
        "model.fp16.onnx",
        "precision-plan.json",
    }


def test_pins_keep_a_module_in_fp32(checkpoint: Path, tmp_path: Path) -> None:
    out = export_checkpoint(
        checkpoint, tmp_path / "bundle", keep_fp32=["encoder.layer.1.intermediate"]
    ).bundle
    plan = PrecisionPlan.load(out / "precision-plan.json")
    pinned = {node.name for node in plan.nodes if any(reason.rule == "pinned" for reason in node.reasons)}
    assert pinned
    assert all(name.startswith("bert/encoder/layer.1/intermediate/") for name in pinned)
    assert "bert/encoder/layer.1/intermediate/dense/MatMul" in pinned
    types = element_types(onnx.load(out / "model.fp16.onnx"))
    assert types["bert.encoder.layer.1.intermediate.dense.weight/transposed"] == TensorProto.FLOAT
    assert types["bert.encoder.layer.0.intermediate.dense.weight/transposed"] == TensorProto.FLOAT16


@pytest.fixture(scope="module")
def in_bf16(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("bf16") / "bundle", precision="bf16").bundle


def test_a_bf16_graph_has_its_own_name(in_bf16: Path) -> None:
    assert not (in_bf16 / "model.fp16.onnx").exists()
    assert TensorProto.BFLOAT16 in element_types(onnx.load(in_bf16 / "model.bf16.onnx")).values()
    opened = Bundle.open(in_bf16)
    assert (opened.low_graph, opened.low_precision) == ("model.bf16.onnx", "bf16")
    assert opened.lowest_graph == in_bf16 / "model.bf16.onnx"
    assert set(opened.stage("convert", "").outputs) == {"model.bf16.onnx", "precision-plan.json"}


@pytest.mark.slow
def test_an_applied_plan_names_the_graph(
    checkpoint: Path, in_bf16: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    plan, out = in_bf16 / "precision-plan.json", tmp_path / "bundle"
    done = run_bertmp("export", checkpoint, "--out", out, "--plan", plan)
    assert done.returncode == 0, done.stderr
    assert "model.bf16.onnx" in done.stdout
    assert "model.fp16.onnx" not in done.stdout
    assert Bundle.open(out).low_graph == "model.bf16.onnx"


def test_no_fp16(checkpoint: Path, tmp_path: Path, run_bertmp: RunBertmp) -> None:
    done = run_bertmp("export", checkpoint, "--out", tmp_path / "bundle", "--no-fp16", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size_ratio"] is None
    assert not (tmp_path / "bundle" / "model.fp16.onnx").exists()


def test_an_encoder_without_a_head_exports_its_states(minilm: Path, tiny: Path, tmp_path: Path) -> None:
    out = export_checkpoint(tiny, tmp_path / "bundle").bundle
    graph = onnx.load(out / "model.onnx")
    assert [value.name for value in graph.graph.output] == ["last_hidden_state", "pooler_output"]
    assert not (out / "labels.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-fp32", "no.such.module"], "'no.such.module' matches no node (--keep-fp32)"),
        (["--opset", "11"], "--opset is 11 (--opset)"),
        (["--task", "poetry"], "unknown task 'poetry' (--task)"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    done = run_bertmp("export", checkpoint, "--out", tmp_path / "bundle", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_not_a_bundle_is_never_replaced(
    checkpoint: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    thesis = tmp_path / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    for out in (thesis, thesis.parent, copy, tmp_path):
        done = run_bertmp("export", copy, "--out", out)
        assert done.returncode == 2
        assert f"({out}): choose another --out" in done.stderr
        assert done.stderr.count("\n") == 1
    assert thesis.read_text() == "years of work"
    assert (copy / "model.safetensors").is_file()


def test_a_bundle_and_an_empty_folder_are_replaced(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    for _ in range(2):
        assert (export_checkpoint(checkpoint, out, fp16=False).bundle / "model.onnx").is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_nothing(checkpoint: Path, small_disk: Path, run_bertmp: RunBertmp) -> None:
    done = run_bertmp("export", checkpoint, "--out", small_disk / "bundle")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: no space left on the disk ({small_disk / 'bundle'}): "
        "free some space or choose another folder\n"
    )
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_keeps_the_bundle_that_was_there(
    checkpoint: Path, small_disk: Path, run_bertmp: RunBertmp
) -> None:
    (small_disk / "bundle").mkdir()
    (small_disk / "bundle" / "old").write_text("kept")
    assert run_bertmp("export", checkpoint, "--out", small_disk / "bundle").returncode == 2
    assert [path.name for path in small_disk.rglob("*")] == ["bundle", "old"]


@pytest.mark.parametrize("library", ["safetensors", "onnxscript"])
def test_ctrl_c_leaves_nothing(library: str, checkpoint: Path, tmp_path: Path) -> None:
    """Whenever it comes: the second library is imported in the middle of tracing, where it is easily lost."""
    command = [
        sys.executable,
        "-v",
        "-m",
        "bertmp",
        "export",
        str(checkpoint),
        "--out",
        str(tmp_path / "bundle"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:  # python -v names every module as it is imported
            if line.startswith(f"import '{library}."):
                break
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr[-2000:]
    assert "interrupted" in stderr.splitlines()
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
