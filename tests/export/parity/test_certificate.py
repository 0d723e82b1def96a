"""The certificate of a parity run, and `verify`, which names what has changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from bertmp import parity, verify
from bertmp.core.errors import InputError
from bertmp.core.hardware import Gpu, NvidiaDriver
from bertmp.core.io import sha256_file
from bertmp.export.bundle import Bundle, Manifest
from bertmp.export.parity.certificate import make_certificate, parse_certificate
from bertmp.export.parity.stage import StageOutput
from tests.conftest import RunBertmp
from tests.export.parity_bundles import Served, damage

GRAPHS = ("model.onnx", "model.fp16.onnx", "precision-plan.json")


@pytest.fixture(scope="module")
def checked(exported: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle after parity; not to be written to."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("checked") / "bundle"))
    assert parity(folder, labelled).passed
    return folder


@pytest.fixture
def certified(checked: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(checked, tmp_path / "bundle"))


def read(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "certificate.json").read_text()))


def changes(bundle: Path, **options: Any) -> list[str]:
    return [one.sentence() for one in verify(bundle, **options).changes]


def forge(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the certificate and makes the manifest agree with it."""
    statement = read(bundle)
    edit(statement)
    (bundle / "certificate.json").write_text(json.dumps(statement))
    manifest = Manifest.load(bundle)
    entry = manifest.stages["parity"]
    digest = sha256_file(bundle / "certificate.json")
    entry = replace(entry, outputs={**entry.outputs, "certificate.json": digest})
    manifest.with_stage("parity", entry).save(bundle)


def test_the_statement_binds_files_checkpoint_and_data(
    checked: Path, checkpoint: Path, labelled: Path
) -> None:
    statement = read(checked)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
    digests = {one["name"]: one["digest"] for one in statement["subject"]}
    manifest = Manifest.load(checked)
    made = {name for stage in ("export", "convert") for name in manifest.stages[stage].outputs}
    assert set(GRAPHS) < made
    assert set(digests) == {*made, "checkpoint", "data"}
    assert digests.pop("checkpoint") == {"sha256": sha256_file(checkpoint / "model.safetensors")}
    assert digests.pop("data") == {"sha256": sha256_file(labelled)}
    assert digests == {name: {"sha256": sha256_file(checked / name)} for name in made}
    assert not any("certificate" in name for name in digests)


def test_the_predicate_tells_what_the_report_tells(checked: Path) -> None:
    found, report = read(checked)["predicate"], json.loads((checked / "parity/report.json").read_text())
    assert found["verdict"] == report["verdict"] == "passed"
    assert found["gates"] == report["gates"]
    assert found["tools"] == report["environment"]
    half = next(stage for stage in report["stages"] if stage["name"] == "onnx-fp16")
    assert found["stages"]["onnx-fp16"]["max_error"] == half["measures"]["max_error"] > 0
    assert found["stages"]["onnx-fp16"]["verdict"] == "passed"
    engine, cpu_bf16 = found["not_checked"]
    assert engine == {"stage": "engine", "reason": "no engine was built", "counts": False}
    assert (cpu_bf16["stage"], cpu_bf16["counts"]) == ("cpu-bf16", False)
    assert found["builder"] is None
    assert found["served"] == []


def test_the_certificate_lies_beside_the_report_and_in_the_manifest(
    bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    parity(bundle, labelled, report=tmp_path / "mine")
    assert (tmp_path / "mine/certificate.json").read_bytes() == (bundle / "certificate.json").read_bytes()
    assert set(Bundle.open(bundle).stage("parity", "bertmp parity").outputs) == {
        "certificate.json",
        "golden-examples.json",
    }
    assert changes(bundle) == []
    parity(bundle, labelled, report=bundle)  # where both are the same file
    assert changes(bundle) == []


def test_the_served_versions_and_the_gpu_are_named(bundle: Path, labelled: Path) -> None:
    def name(answer: StageOutput) -> StageOutput:
        return replace(answer, details={"model": "trec", "versions": ["3"], "protocol": "grpc"})

    result = parity(bundle, labelled, extra_stages=[Served(bundle / "model.onnx", name)])
    served = {"model": "trec", "versions": ["3"], "protocol": "grpc"}
    assert read(bundle)["predicate"]["served"] == [{"stage": "triton", "serves": "onnx-fp32", **served}]
    driver = NvidiaDriver((Gpu("H100", "9.0", 80 << 30, "13.0", "580.95.05"),), "13.0")
    built = replace(
        result.contents, engine={"builder": "tensorrt", "builder_version": "10.13", "cuda": "12.9"}
    )
    found = make_certificate(Bundle.open(bundle), replace(result, contents=built), driver)["predicate"]
    assert found["gpus"] == [{"name": "H100", "driver": "580.95.05", "cuda": "13.0"}]
    assert found["builder"] == {"name": "tensorrt", "version": "10.13"}


def test_an_unchanged_bundle_is_verified_wherever_it_lies(certified: Path, tmp_path: Path) -> None:
    moved = certified.rename(tmp_path / "moved")
    found = verify(moved)
    assert found.verified
    assert found.changes == found.not_compared == ()
    assert set(found.matching) == {one["name"] for one in read(moved)["subject"]}
    assert found.verdict == "passed"
    assert not found.signed


@pytest.mark.parametrize("name", [*GRAPHS, "labels.txt", "parity/report.json", "certificate.json"])
def test_one_changed_byte_is_named(certified: Path, name: str) -> None:
    content = bytearray((certified / name).read_bytes())
    content[-1] ^= 1 if name != "certificate.json" else ord("\n") ^ ord(" ")  # which stays JSON
    (certified / name).write_bytes(content)
    assert changes(certified) == [f"{name} differs"]


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "config.json", "parity/report.html"])
def test_a_missing_file_is_named(certified: Path, name: str) -> None:
    (certified / name).unlink()
    assert changes(certified) == [f"{name} is missing"]


def test_external_weights_are_bound(bundle: Path, labelled: Path) -> None:
    graph = onnx.load(bundle / "model.onnx")
    onnx.save_model(graph, bundle / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    manifest = Manifest.load(bundle)
    for stage, names in {"export": ("outputs",), "convert": ("inputs",)}.items():
        entry = manifest.stages[stage]
        for kind in names:
            files = {name: Bundle(bundle).sha256(name) for name in getattr(entry, kind)}
            files["model.onnx.data"] = sha256_file(bundle / "model.onnx.data")
            entry = replace(entry, **{kind: files})
        manifest = manifest.with_stage(stage, entry)
    manifest.save(bundle)
    parity(bundle, labelled)
    assert changes(bundle) == []
    with (bundle / "model.onnx.data").open("r+b") as stream:
        stream.write(b"\x01\x02")
    assert changes(bundle) == ["model.onnx.data differs"]


def test_what_was_written_since_is_not_in_the_certificate(certified: Path) -> None:
    (certified / "engine").mkdir()
    (certified / "engine/model.plan").write_bytes(b"an engine")
    Bundle.open(certified).record(
        "build-engine", inputs=[], outputs=["engine/model.plan"], tools=[], settings={}, results={}, seconds=1
    )
    assert changes(certified) == ["engine/model.plan is not in the certificate"]


def test_a_verdict_that_is_not_passed_is_said(bundle: Path, labelled: Path) -> None:
    damage(bundle, 0.5)
    parity(bundle, labelled)
    assert changes(bundle) == ["the verdict is failed, not passed"]
    assert not verify(bundle).verified


def test_a_new_run_replaces_the_certificate(bundle: Path, labelled: Path) -> None:
    parity(bundle, labelled)
    damage(bundle, 0.5)
    assert changes(bundle)[0] == "model.fp16.onnx differs"
    parity(bundle, labelled)
    assert verify(bundle).verdict == "failed"


def test_a_missing_certificate_is_said(certified: Path, exported: Path) -> None:
    (certified / "certificate.json").unlink()
    assert changes(certified) == ["certificate.json is missing: run 'bertmp parity'"]
    assert "manifest.json has no entry of parity" in changes(exported)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda one: one.pop("subject"), "a part of the statement is missing"),
        (lambda one: one.update(predicateType="other"), "it is another kind of statement"),
        (lambda one: one["predicate"].update(verdict="fine"), "it has no verdict"),
        (lambda one: one["predicate"]["gates"][0].update(passed=False), "one of its gates is not"),
        (lambda one: one["subject"].append(one["subject"][0]), "named twice"),
        (lambda one: one["subject"][0].update(name="../model.onnx"), "no file of the bundle"),
        (lambda one: one["subject"][0]["digest"].update(sha256="0"), "has no SHA-256"),
        (lambda one: one["subject"].pop(), "the subject 'data' is missing"),
    ],
)
def test_a_damaged_certificate_is_said(
    certified: Path, edit: Callable[[dict[str, Any]], object], why: str
) -> None:
    # The data is made the last subject, which one of the edits removes.
    forge(certified, lambda one: one["subject"].sort(key=lambda subject: subject["name"] == "data"))
    forge(certified, edit)
    (found,) = changes(certified)
    assert found.startswith("certificate.json is damaged: ")
    assert why in found


def test_a_certificate_that_is_no_json_is_said(certified: Path) -> None:
    (certified / "certificate.json").write_text("{")
    assert changes(certified) == ["certificate.json is damaged: not a JSON file"]


def test_what_lies_outside_is_compared_where_it_is_found(
    certified: Path, checkpoint: Path, labelled: Path, tmp_path: Path
) -> None:
    gone = {"checkpoint": str(tmp_path / "gone"), "data": {"file": str(tmp_path / "gone.tsv")}}
    forge(certified, lambda one: one["predicate"].update(gone))
    found = verify(certified)
    assert found.verified
    assert {one.name for one in found.not_compared} == {"checkpoint", "data"}
    assert str(tmp_path / "gone.tsv") in found.not_compared[0].sentence()
    there = verify(certified, checkpoint=checkpoint, data=labelled)
    assert there.verified
    assert {"checkpoint", "data"} < set(there.matching)
    (tmp_path / "gone.tsv").write_text("other")
    assert changes(certified, checkpoint=checkpoint) == ["data differs"]
    with pytest.raises(InputError, match="no such file"):
        verify(certified, data=tmp_path / "nowhere.tsv")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        verify(certified, checkpoint=tmp_path)


def test_what_is_read_is_what_was_written(checked: Path) -> None:
    found = parse_certificate(read(checked))
    assert found.verdict == "passed"
    engine, cpu_bf16 = found.not_checked
    assert engine == "engine: no engine was built"
    assert cpu_bf16.startswith("cpu-bf16: ")
    with pytest.raises(ValueError, match="part of the statement"):
        parse_certificate([])


def test_the_command_says_what_changed_and_that_nobody_signed(certified: Path, run_bertmp: RunBertmp) -> None:
    done = run_bertmp("verify", certified)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified: ")
    assert sum("unsigned" in line for line in done.stdout.splitlines()) == 1
    (certified / "model.onnx").unlink()
    done = run_bertmp("verify", certified, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["verified"] is False
    assert found["signed"] is False
    assert found["changes"] == [{"name": "model.onnx", "what": "is missing"}]
    done = run_bertmp("verify", certified.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("error: not a bundle")


def test_a_report_outside_the_bundle_is_compared(bundle: Path, labelled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    parity(bundle, labelled, report=folder)
    assert verify(bundle).verified
    with (folder / "report.html").open("a") as stream:
        stream.write(" ")
    (folder / "junit.xml").unlink()
    found = verify(bundle)
    assert [one.sentence() for one in found.changes] == [f"{folder / 'report.html'} differs"]
    assert [one.sentence() for one in found.not_compared] == [f"{folder / 'junit.xml'} is not there"]
