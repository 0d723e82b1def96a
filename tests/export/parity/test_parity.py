"""Parity on a small exported model: the chain, its gates and its report."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bertmp import parity
from bertmp.core.errors import InputError
from bertmp.export.bundle import Bundle, Manifest
from bertmp.export.parity.gates import DEFAULTS, override
from bertmp.export.parity.report import FILES
from bertmp.export.parity.stage import StageOutput
from tests.export.parity_bundles import LABELS, LOW, Served, adopt, damage


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
        ("cpu-bf16", "not run"),
    ]
    exact, half = result.stage("onnx-fp32").measures, result.stage("onnx-fp16").measures
    assert exact is not None
    assert half is not None
    assert exact.max_error <= 5e-5 < half.max_error
    assert exact.accuracy == 59 / 60
    assert {path.name for path in result.folder.iterdir()} == set(FILES)
    assert result.folder == bundle / "parity"


def test_the_three_files_tell_the_same(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    written = json.loads((result.folder / "report.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    root = ElementTree.parse(result.folder / "junit.xml").getroot()
    cases = root.findall(".//testcase")
    assert int(root.get("tests", "0")) == len(cases) == len(result.gates) + 3
    assert int(root.get("failures", "-1")) == len(root.findall(".//failure")) == 0
    skipped = [case.get("classname") for case in cases if case.find("skipped") is not None]
    assert int(root.get("skipped", "-1")) == len(skipped)
    assert skipped == ["parity.torch-amp", "parity.engine", "parity.cpu-bf16"]
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
