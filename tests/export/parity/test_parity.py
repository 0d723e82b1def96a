"""Parity on a small exported model: the chain, its gates, its report and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from bertmp import export_checkpoint, parity
from bertmp.core.errors import InputError
from bertmp.export.bundle import Bundle, Manifest
from bertmp.export.parity.gates import DEFAULTS, override
from bertmp.export.parity.reading import read_inputs
from bertmp.export.parity.report import FILES
from bertmp.export.parity.stage import StageOutput
from tests.export.inconsistent_graphs import Fault, add_length, centre_batch, roll_large_batches
from tests.export.parity_bundles import LABELS, LOW, Served, adopt, damage, mix_up


def test_parity_reads_the_manifest_once_and_each_file_once(
    bundle: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertmp.export import bundle as bundles

    hashed: list[Path] = []
    read: list[str] = []
    sha256_file, read_json = bundles.sha256_file, bundles.read_json
    monkeypatch.setattr(bundles, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    monkeypatch.setattr(bundles, "read_json", lambda path: read.append(path.name) or read_json(path))
    parity(bundle, labelled)
    assert read.count("manifest.json") == 1
    assert {"model.onnx", "model.fp16.onnx", "precision-plan.json"} <= {path.name for path in hashed}
    assert len(hashed) == len(set(hashed))


def test_a_sound_bundle_passes_every_gate(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    assert result.passed, result.failed_gates
    assert result.reference == "torch-fp32"
    assert result.data.truncated == 1
    assert [(stage.name, stage.status) for stage in result.stages] == [
        ("torch-fp32", "reference"),
        ("torch-amp", "run"),
        ("onnx-fp32", "run"),
        *((stage, "run") for stage in LOW),
        ("engine", "not run"),
    ]
    exact, half = result.stage("onnx-fp32").measures, result.stage("onnx-fp16").measures
    assert exact is not None
    assert half is not None
    assert exact.max_error <= 5e-5 < half.max_error
    assert exact.accuracy == 59 / 60
    assert {path.name for path in result.folder.iterdir()} == set(FILES)
    assert result.folder == bundle / "parity"


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
    assert [stage.name for stage in result.stages] == ["torch-fp32", "torch-amp", "onnx-fp32", *low, "engine"]
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


def test_a_file_that_is_read_as_conll_is_said_to_be(bundle: Path, tmp_path: Path) -> None:
    data, said = tmp_path / "words.conll", []
    data.write_text("w1\tB-PER\nw2\tO\n\nw3\tO\n")
    parity(bundle, data, progress=lambda message, *_: said.append(message))
    assert said[0] == f"{data}: read as CoNLL, 2 sentences"


def test_the_three_files_tell_the_same(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    written = json.loads((result.folder / "report.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    root = ElementTree.parse(result.folder / "junit.xml").getroot()
    cases = root.findall(".//testcase")
    assert int(root.get("tests", "0")) == len(cases) == len(result.gates) + 2
    assert int(root.get("failures", "-1")) == len(root.findall(".//failure")) == 0
    skipped = [case.get("classname") for case in cases if case.find("skipped") is not None]
    assert int(root.get("skipped", "-1")) == len(skipped)
    assert skipped == ["parity.torch-amp", "parity.engine"]
    page = (result.folder / "report.html").read_text()
    assert f"{len(result.gates)} of {len(result.gates)} gates passed" in " ".join(page.split())


def test_the_manifest_keeps_the_verdict_and_goes_stale_with_the_bundle(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    entry = Bundle.open(bundle).stage("parity", "bertmp parity")
    assert set(entry.inputs) == {"model.onnx", "model.fp16.onnx", "precision-plan.json"}
    assert entry.results["passed"] is True
    assert entry.results["texts"] == 60
    assert entry.results["data_sha256"] == result.data.sha256
    assert entry.results["stages"]["onnx-fp16"]["flips"] == 0
    damage(bundle, 0.1)
    with pytest.raises(InputError, match="stale"):
        Bundle.open(bundle).stage("parity", "bertmp parity")


def test_a_damaged_graph_fails_and_the_report_says_where(bundle: Path, labelled: Path) -> None:
    damage(bundle, 0.5)
    result = parity(bundle, labelled)
    assert not result.passed
    assert {gate.stage for gate in result.failed_gates} == {*LOW}
    assert "max_error" in {gate.name for gate in result.failed_gates}
    assert result.flips
    assert Manifest.load(bundle).stages["parity"].results["passed"] is False
    page = (result.folder / "report.html").read_text()
    assert "<title>failed" in page
    assert LABELS[2] not in page  # a label is text, not markup
    where = result.stage("onnx-fp16").localisation
    assert where is not None
    assert where.block == "bert.encoder.layer.0"
    assert "Where does onnx-fp16 go wrong?" in page
    assert "bert.encoder.layer.0" in page


def test_labels_in_another_order_than_the_checkpoints_fail(bundle: Path, labelled: Path) -> None:
    first, second, third = (bundle / "labels.txt").read_text().splitlines()
    (bundle / "labels.txt").write_text(f"{second}\n{first}\n{third}\n")
    adopt(bundle)
    result = parity(bundle, labelled)
    assert [(gate.stage, gate.name) for gate in result.failed_gates] == [("torch-fp32", "as_exported")]
    assert "labels.txt has place, animal" in result.failed_gates[0].sentence
    off = override({"torch-fp32": {"as_exported": False}}, "")
    assert "as_exported" not in {gate.name for gate in parity(bundle, labelled, gates=off).failed_gates}


def test_unlabelled_texts_are_compared_without_accuracy(
    bundle: Path, texts: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(texts[:20]))
    result = parity(bundle, data)
    assert result.passed
    assert result.stage("onnx-fp16").measures.accuracy is None  # type: ignore[union-attr]
    assert "accuracy_points" not in {gate.name for gate in result.gates}
    damage(bundle, 0.5)
    assert not parity(bundle, data).passed


def test_a_label_that_the_model_does_not_know_names_its_line(bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("animal\tw1\n\nmineral\tw2\n")
    with pytest.raises(InputError, match=r"label 'mineral' \(.*data.tsv, line 3\)"):
        parity(bundle, data)
    assert not (bundle / "parity").exists()


def test_without_the_checkpoint_the_fp32_graph_is_the_reference(
    bundle: Path, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    manifest = Manifest.load(bundle)
    moved = replace(manifest.stages["export"], settings={"checkpoint": str(tmp_path / "gone")})
    manifest.with_stage("export", moved).save(bundle)
    result = parity(bundle, labelled)
    assert (result.verdict, result.reference) == ("incomplete", "onnx-fp32")
    assert [one.stage for one in result.unchecked] == ["torch-fp32"]
    assert parity(bundle, labelled, allow_incomplete=["torch-fp32"]).verdict == "passed"
    assert "not on this machine" in result.note
    assert "not on this machine" in (result.folder / "report.html").read_text()
    gates = [gate.name for gate in result.gates if gate.stage == "onnx-fp32"]
    assert gates == ["non_finite", "consistent", "adversarial"]
    assert parity(bundle, labelled, checkpoint=checkpoint).reference == "torch-fp32"
    with pytest.raises(InputError, match="not on this machine"):
        parity(bundle, labelled, checkpoint=tmp_path / "gone")


def test_a_model_for_pairs_is_not_compared_on_single_texts(bundle: Path, labelled: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "text_pairs": True}))
    manifest = Manifest.load(bundle)
    entry = manifest.stages["export"]
    entry = replace(entry, outputs={name: Bundle(bundle).sha256(name) for name in entry.outputs})
    manifest.with_stage("export", entry).save(bundle)
    with pytest.raises(InputError, match="trained on pairs of texts"):
        parity(bundle, labelled)


def test_another_checkpoint_is_not_the_reference(
    bundle: Path, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="not the one that was exported"):
        parity(bundle, labelled, checkpoint=other)


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_a_stale_bundle_is_refused(bundle: Path, labelled: Path, name: str) -> None:
    with (bundle / name).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match=f"stale: {name} changed"):
        parity(bundle, labelled)


@pytest.mark.parametrize(
    ("file", "stage", "others"),
    [("model.fp16.onnx", "onnx-fp16", "onnx-fp32"), ("model.onnx", "onnx-fp32", "onnx-fp16")],
)
def test_a_graph_that_cannot_be_loaded_fails_its_stage_in_one_line(
    bundle: Path, labelled: Path, file: str, stage: str, others: str
) -> None:
    (bundle / file).write_bytes(b"no graph at all")
    adopt(bundle)
    result = parity(bundle, labelled)
    found = result.stage(stage)
    assert found.status == "failed"
    assert "\n" not in found.reason
    assert (stage, "runs") in {(gate.stage, gate.name) for gate in result.failed_gates}
    assert result.stage(others).status == "run"


def test_an_unreachable_server_ends_the_run_and_writes_nothing(bundle: Path, labelled: Path) -> None:
    def refuse(answer: StageOutput) -> StageOutput:
        raise InputError("no server answers", "localhost:1", "start it")

    with pytest.raises(InputError, match="no server answers"):
        parity(bundle, labelled, extra_stages=[Served(bundle / "model.onnx", refuse)])
    assert not (bundle / "parity").exists()
    assert "parity" not in Manifest.load(bundle).stages


def test_the_reports_folder_keeps_what_else_is_in_it(bundle: Path, labelled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    result = parity(bundle, labelled, report=folder)
    assert result.folder == folder
    assert {path.name for path in folder.iterdir()} == {"notes.txt", *FILES}
    with pytest.raises(InputError, match="not a folder"):
        parity(bundle, labelled, report=folder / "notes.txt")


def test_limits_can_be_set(bundle: Path, labelled: Path) -> None:
    assert not parity(bundle, labelled, gates=override({"onnx-fp16": {"max_error": 1e-9}}, "")).passed
    assert parity(bundle, labelled, gates=DEFAULTS).passed


# ---- answers compared with each other


def test_every_stage_that_runs_is_compared_with_itself(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    for stage in result.stages[:5]:
        found = stage.consistency
        assert found is not None
        assert found.passed, found.sentence()
        assert {one.shape for one in found.results} >= {"32x16", "5x40", "1x40"}
    exact, low = (result.stage(name).consistency for name in ("torch-fp32", "onnx-fp16"))
    assert exact is not None
    assert low is not None
    assert max(one.bound for one in exact.results) < max(one.bound for one in low.results)
    assert [gate.stage for gate in result.gates if gate.name == "consistent"] == [
        "torch-fp32",
        "onnx-fp32",
        *LOW,
    ]
    page = " ".join((result.folder / "report.html").read_text().split())
    assert re.search(r"permuted rows</td><td>\d+x\d+, the worst of 5</td>", page)


def test_a_served_stage_gets_the_profiles_of_the_bundles_engine(bundle: Path, labelled: Path) -> None:
    assert read_inputs(Bundle.open(bundle), labelled).inputs.profiles == ()
    texts = ["1x1:8x16:32x16", "1x17:8x40:32x40"]
    record = {"inputs": (), "outputs": (), "tools": (), "settings": {}, "seconds": 0.0}
    Bundle.open(bundle).record("build-engine", results={"profiles": texts}, **record)
    assert [str(one) for one in read_inputs(Bundle.open(bundle), labelled).inputs.profiles] == texts


@pytest.mark.parametrize(
    ("fault", "check"),
    [(roll_large_batches, "permuted_rows"), (centre_batch, "single_row"), (add_length, "padding")],
)
def test_a_graph_that_contradicts_itself_fails(
    bundle: Path, labelled: Path, fault: Fault, check: str
) -> None:
    mix_up(bundle, fault)
    result = parity(bundle, labelled)
    failed = [gate for gate in result.failed_gates if gate.name == "consistent"]
    assert [(gate.stage, gate.measured) for gate in failed] == [(stage, False) for stage in LOW]
    assert all(f"{check} at " in gate.sentence for gate in failed)
    assert Manifest.load(bundle).stages["parity"].results["stages"]["onnx-fp16"]["consistent"] is False
    assert result.verdict_on(result.stage("onnx-fp16")) == "failed"
    off = parity(bundle, labelled, gates=override({stage: {"consistent": False} for stage in LOW}, ""))
    assert "consistent" not in {gate.name for gate in off.failed_gates}


def test_the_command_names_a_contradiction_that_no_compared_answer_shows(
    bundle: Path, labelled: Path, run_bertmp: Callable[..., Any]
) -> None:
    mix_up(bundle, roll_large_batches)
    done = run_bertmp("parity", bundle, "--data", labelled)
    assert done.returncode == 1, done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed ")]
    assert len(failed) == 3
    assert failed[0].startswith("failed onnx-fp16 consistent: it contradicts itself: identical_rows at 32x16")
    assert failed[1].startswith("failed onnx-fp16 as_planned: ")
    assert failed[2].startswith(f"failed {LOW[1]} consistent: it contradicts itself: identical_rows at 32x16")
    written = json.loads((bundle / "parity" / "report.json").read_text())
    [stage] = [stage for stage in written["stages"] if stage["name"] == "onnx-fp16"]
    broken = {(one["check"], one["shape"]) for one in stage["consistency"]["results"] if not one["passed"]}
    assert ("permuted_rows", "32x16") in broken
    assert 'tr class="broken"' in (bundle / "parity" / "report.html").read_text()


# ---- the command


def test_the_command_prints_its_figures_and_the_reports_path(
    bundle: Path, labelled: Path, run_bertmp: Callable[..., Any]
) -> None:
    done = run_bertmp("parity", bundle, "--data", labelled)
    assert done.returncode == 0, done.stderr
    assert "torch-fp32" in done.stdout
    assert "two answers to the same row: torch-fp32 " in " ".join(done.stdout.split())
    assert str(bundle / "parity" / "report.html") in done.stdout
    told = run_bertmp("parity", bundle, "--data", labelled, "--json")
    assert json.loads(told.stdout)["passed"] is True


def test_the_command_ends_with_1_where_a_gate_fails(
    bundle: Path, labelled: Path, run_bertmp: Callable[..., Any]
) -> None:
    damage(bundle, 0.5)
    done = run_bertmp("parity", bundle, "--data", labelled)
    assert done.returncode == 1
    assert "onnx-fp16 max_error" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gates", "gates.toml"], "unknown gate 'max_eror'"),
        (["--server", "localhost:1"], "no --model"),
        (["--server", "grpc://", "--model", "x"], "no server's address (--server grpc://)"),
        (["--server", "localhost:1", "--server", "grpc://localhost:2", "--model", "x"], "two servers of one"),
        (
            ["--server", "http://localhost:1", "--protocol", "grpc", "--model", "x"],
            "--protocol grpc and an address of another protocol",
        ),
        (["--require", "tirton"], "unknown stage 'tirton' (--require)"),
        (["--protocol", "carrier-pigeon"], "unknown value 'carrier-pigeon' (--protocol)"),
        (["--text-column", "question"], "error:"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    bundle: Path,
    labelled: Path,
    tmp_path: Path,
    run_bertmp: Callable[..., Any],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "gates.toml").write_text("[onnx-fp16]\nmax_eror = 1\n")
    data = labelled
    if "--text-column" in options:
        data = tmp_path / "data.jsonl"
        data.write_text('{"text": "w1"}\n')
    done = run_bertmp("parity", bundle, "--data", data, *options, cwd=tmp_path, env=_importable())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (bundle / "parity").exists()


def _importable() -> dict[str, str]:
    """For a run from another folder, where the package may not be installed."""
    return {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def test_an_interruption_leaves_nothing_half_written(bundle: Path, texts: list[str], tmp_path: Path) -> None:
    data = tmp_path / "many.txt"
    data.write_text("\n".join(texts * 2000))
    before = sorted(path.name for path in bundle.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "bertmp", "parity", str(bundle), "--data", str(data)],
        env={**os.environ, **_importable()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for_library(process.pid, "libtorch")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    assert sorted(path.name for path in bundle.iterdir()) == before
    assert "parity" not in Manifest.load(bundle).stages


def _wait_for_library(process: int, name: str) -> None:
    """Until the process has loaded a library: for parity, its first stage has begun."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if name in Path(f"/proc/{process}/maps").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"{name} was not loaded")
