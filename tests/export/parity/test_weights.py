"""The 16-bit graph's name and the size of its weights, against the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bertmp import export_checkpoint, parity
from bertmp.export.bundle import Bundle, Manifest
from tests.export.parity_bundles import adopt


@pytest.mark.parametrize("file", ["model.bf16.onnx", "model.fp16.onnx"])
def test_a_bf16_graph_is_a_stage_of_its_own_name(
    checkpoint: Path, labelled: Path, tmp_path: Path, file: str
) -> None:
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", precision="bf16").bundle
    if file != "model.bf16.onnx":  # what version 0.1 called it
        (bundle / "model.bf16.onnx").rename(bundle / file)
        manifest = Manifest.load(bundle)
        entry = manifest.stages["convert"]
        outputs = {file if name.endswith(".onnx") else name: sha for name, sha in entry.outputs.items()}
        manifest.with_stage("convert", replace(entry, outputs=outputs)).save(bundle)
    result = parity(bundle, labelled)
    low = ["onnx-bf16", "onnx-bf16-emulated"]
    chain = ["torch-fp32", "torch-amp", "onnx-fp32", *low, "engine", "cpu-bf16"]
    assert [stage.name for stage in result.stages] == chain
    assert result.stage("onnx-bf16").size_ratio == pytest.approx(0.5, abs=0.02)
    assert file in Bundle.open(bundle).stage("parity", "bertmp parity").inputs
    page = (result.folder / "report.html").read_text()
    assert file in page
    assert "BF16 file against FP32" in page


def test_a_small_graph_does_not_fail_on_its_file(checkpoint: Path, texts: list[str], tmp_path: Path) -> None:
    from bertmp.model.checkpoint import save_checkpoint
    from bertmp.model.config import BertConfig
    from tests.models import classifier, small_tokenizer

    tokenizer = small_tokenizer(tmp_path)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
    config = replace(BertConfig.load(checkpoint), **sizes, vocab_size=tokenizer.vocabulary_size)
    save_checkpoint(tmp_path / "small", classifier(config), config, tokenizer)
    bundle = export_checkpoint(tmp_path / "small", tmp_path / "bundle").bundle
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    result = parity(bundle, tmp_path / "texts.txt")
    assert result.contents.size_ratio is not None
    assert result.contents.size_ratio > 0.6  # its nodes take as much of the file as its weights
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert result.stage("onnx-fp16").size_ratio == pytest.approx(0.5)


def test_weights_that_the_plan_keeps_in_fp32_do_not_count(
    checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", calibration=labelled, max_error=2e-4).bundle
    result = parity(bundle, labelled)
    assert result.contents.size_ratio is not None
    assert result.contents.size_ratio > 0.51
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert result.stage("onnx-fp16").size_ratio == pytest.approx(0.5)


def test_a_graph_whose_weights_are_all_kept_has_no_size_to_hold(
    checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", keep_fp32=["*"]).bundle
    result = parity(bundle, labelled)
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert "size_ratio" not in {gate.name for gate in result.gates}
    assert "keeps them all in FP32" in str(result.stage("onnx-fp16").details["weights"])


def test_weights_in_fp32_against_the_plan_fail(bundle: Path, labelled: Path) -> None:
    graph = onnx.load(bundle / "model.fp16.onnx")
    weights = next(
        tensor
        for tensor in graph.graph.initializer
        if list(tensor.dims) == [128, 256] and tensor.data_type == onnx.TensorProto.FLOAT16
    )
    name, values = weights.name, onnx.numpy_helper.to_array(weights).astype(np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(values, "wide"))
    cast = onnx.helper.make_node("Cast", ["wide"], [name], name="narrow", to=onnx.TensorProto.FLOAT16)
    graph.graph.node.insert(0, cast)
    onnx.save(graph, bundle / "model.fp16.onnx")
    adopt(bundle)
    result = parity(bundle, labelled)
    failed = {(gate.stage, gate.name) for gate in result.failed_gates}
    assert failed == {("onnx-fp16", "size_ratio"), ("onnx-fp16", "as_planned")}
