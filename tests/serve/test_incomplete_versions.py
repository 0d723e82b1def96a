"""Repositories in which files of a version, or the record of the versions, are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bertmp import models, rollback
from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file, write_json
from bertmp.serve.repository import numbered, servable
from tests.conftest import RunBertmp
from tests.serve.bundles import altered, deploy
from tests.serve.conftest import Served


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def two_versions(bundle: Path, other_bundle: Path, tmp_path: Path) -> Path:
    """A repository in which `trec` has version 1 of `bundle` and 2, the live one, of `other_bundle`."""
    repository = tmp_path / "repository"
    deploy(bundle, "trec", repository)
    deploy(other_bundle, "trec", repository)
    return repository


@pytest.mark.parametrize(
    "lost",
    [
        *("trec_encoder", "trec_encoder/2", "trec_encoder/2/model.onnx", "trec_encoder/config.pbtxt"),
        *("trec_encoder/configs/cpu.pbtxt", "trec/config.pbtxt", "trec/labels.txt", "trec/2/model.py"),
        *("trec/2/settings.json", "trec/2/golden.json", "trec/2/tokenizer.json"),
        *("trec/2/lib/tokenizers/tokenizers.abi3.so",),
    ],
)
def test_deploy_of_the_live_bundle_with_a_lost_file_deploys_it_again(
    two_versions: Path, other_bundle: Path, lost: str
) -> None:
    remove(two_versions / lost)
    result = deploy(other_bundle, "trec", two_versions)
    assert (result.version, result.new) == (3, True)
    assert lost in result.notes[0]
    graph = (two_versions / "trec_encoder/3/model.onnx").read_bytes()
    assert graph == (other_bundle / "model.onnx").read_bytes()
    assert servable(two_versions) == ["trec", "trec_encoder"]
    again = deploy(other_bundle, "trec", two_versions)
    assert (again.version, again.new) == (3, False), "now it is complete"


def test_deploy_of_the_live_bundle_with_external_weights_lost_deploys_it_again(
    bundle: Path, tmp_path: Path
) -> None:
    large = altered(bundle, tmp_path / "large")
    (large / "model.onnx.data").write_bytes(b"weights")
    manifest = read_json(large / "manifest.json")
    manifest["stages"]["export"]["outputs"]["model.onnx.data"] = sha256_file(large / "model.onnx.data")
    write_json(large / "manifest.json", manifest)
    deploy(large, "trec", tmp_path / "repository")
    remove(tmp_path / "repository/trec_encoder/1/model.onnx.data")
    result = deploy(large, "trec", tmp_path / "repository")
    assert (result.version, result.new) == (2, True)
    assert "trec_encoder/1/model.onnx.data" in result.notes[0]


def test_deploy_of_the_live_bundle_with_damaged_settings_deploys_it_again(
    two_versions: Path, other_bundle: Path
) -> None:
    (two_versions / "trec/2/settings.json").write_text("{")
    result = deploy(other_bundle, "trec", two_versions)
    assert (result.version, result.new) == (3, True)
    assert "trec/2/settings.json" in result.notes[0]


@pytest.mark.parametrize(
    ("model", "file", "content"),
    [
        ("trec_encoder", "model.onnx", "no graph"),
        ("trec_encoder", "precision.json", '{"model.onnx": "bf16"}'),
        ("trec", "tokenizer.json", "{}"),
        ("trec", "golden.json", "{"),
        ("trec", "model.py", "other code"),
    ],
)
def test_a_version_that_has_changed_on_the_disk_is_not_the_one_that_was_deployed(
    two_versions: Path, other_bundle: Path, model: str, file: str, content: str
) -> None:
    for version in (1, 2):
        (two_versions / model / str(version) / file).write_text(content)
    before = contents(two_versions / "trec")
    with pytest.raises(InputError, match=f"is not as it was deployed: {model}/1/{file}"):
        rollback("trec", two_versions)
    assert contents(two_versions / "trec") == before
    result = deploy(other_bundle, "trec", two_versions)
    assert (result.version, result.new) == (3, True)
    assert f"has another {model}/2/{file}" in result.notes[0]


def test_deploy_with_a_lost_configuration_keeps_a_persons_tuning(
    two_versions: Path, other_bundle: Path
) -> None:
    tuned = two_versions / "trec_encoder/configs/cpu.pbtxt"
    tuned.write_text(f"# tuned\n{tuned.read_text()}")
    remove(two_versions / "trec_encoder/config.pbtxt")
    assert deploy(other_bundle, "trec", two_versions).new
    assert tuned.read_text().startswith("# tuned\n")
    assert (two_versions / "trec_encoder/config.pbtxt").is_file()


def test_deploy_of_another_bundle_where_the_signature_is_lost_is_refused(
    two_versions: Path, bundle: Path
) -> None:
    remove(two_versions / "trec/labels.txt")
    before = contents(two_versions)
    with pytest.raises(InputError, match="deploy the live version's bundle again"):
        deploy(bundle, "trec", two_versions)
    assert contents(two_versions) == before


@pytest.mark.slow
def test_deploy_to_a_server_after_a_lost_encoder_answers_from_the_new_version(
    served: Served, bundle: Path
) -> None:
    url = served.running.grpc
    deploy(bundle, "restored", served.repository, url)
    remove(served.repository / "restored_encoder/1")
    result = deploy(bundle, "restored", served.repository, url)
    assert (result.version, result.new) == (2, True)
    assert result.canary is not None


@pytest.mark.parametrize(
    "lost",
    [
        *("trec_encoder/1", "trec_encoder/1/model.onnx", "trec/1/model.py", "trec/1/tokenizer.json"),
        *("trec/1/settings.json", "trec/1/lib/tokenizers/__init__.py", "trec_encoder/config.pbtxt"),
        "trec/labels.txt",
    ],
)
def test_rollback_to_a_version_with_a_lost_file_is_refused(two_versions: Path, lost: str) -> None:
    remove(two_versions / lost)
    before = contents(two_versions)
    with pytest.raises(InputError, match="version 1 of 'trec' lacks") as refused:
        rollback("trec", two_versions)
    assert lost in str(refused.value)
    assert contents(two_versions) == before


def test_rollback_to_an_incomplete_version_of_0_1_is_refused(two_versions: Path) -> None:
    """Its settings do not list its files."""
    path = two_versions / "trec/1/settings.json"
    listed = ("encoder_files", "text_files")
    write_json(path, {key: value for key, value in read_json(path).items() if key not in listed})
    shutil.rmtree(two_versions / "trec/1/lib")
    lost = two_versions / "trec_encoder/1/model.onnx"
    kept = lost.rename(two_versions.with_name("kept.onnx"))
    with pytest.raises(InputError, match=r"lacks trec_encoder/1/model\.onnx \("):
        rollback("trec", two_versions)
    shutil.copyfile(kept, lost)
    assert rollback("trec", two_versions).version == 1


def test_rollback_to_a_version_without_an_entry_records_it_from_its_folder(two_versions: Path) -> None:
    path = two_versions / "trec/versions.json"
    log = read_json(path)
    write_json(path, {**log, "versions": [entry for entry in log["versions"] if entry["version"] != 1]})
    result = rollback("trec", two_versions)
    assert (result.version, result.parity) == (1, "not checked")
    assert any("no entry of version 1" in note for note in result.notes)
    first, second = models(two_versions)
    assert (first.version, first.state, first.note) == (1, "live", "recorded from its folder")
    assert (second.version, second.state, second.note) == (2, "retired", "")
    assert numbered(two_versions / "trec") == numbered(two_versions / "trec_encoder") == [1]


def test_commands_without_the_record_of_the_versions_say_so(
    two_versions: Path, bundle: Path, run_bertmp: RunBertmp
) -> None:
    deploy(bundle, "other", two_versions)
    remove(two_versions / "trec/versions.json")
    before = contents(two_versions)
    for arguments in (("rollback", "trec"), ("models",)):
        done = run_bertmp(*arguments, "--repository", two_versions)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: 'trec' has versions and no record of them (")
        assert "versions.json" in done.stderr
        assert "bertmp deploy" in done.stderr
        assert done.stderr.count("\n") == 1
    assert contents(two_versions) == before


def test_deploy_without_the_record_of_the_versions_makes_one(two_versions: Path, other_bundle: Path) -> None:
    remove(two_versions / "trec/versions.json")
    result = deploy(other_bundle, "trec", two_versions)
    assert (result.version, result.new) == (3, True)
    assert "no entry of version 1, 2" in result.notes[0]
    found = [(entry.version, entry.state) for entry in models(two_versions)]
    assert found == [(1, "superseded"), (2, "superseded"), (3, "live")]
    assert rollback("trec", two_versions).version == 2


def test_models_leaves_models_alone_that_others_made(two_versions: Path) -> None:
    foreign = two_versions / "foreign"
    (foreign / "1").mkdir(parents=True)
    (foreign / "1/model.py").write_text("")
    (foreign / "config.pbtxt").write_text(json.dumps({"name": "foreign"}))
    assert {entry.name for entry in models(two_versions)} == {"trec"}


def test_rollback_with_a_damaged_record_moves_nothing(two_versions: Path) -> None:
    (two_versions / "trec/versions.json").write_text("{}")
    before = contents(two_versions)
    with pytest.raises(InputError, match="not a log of versions"):
        rollback("trec", two_versions)
    assert contents(two_versions) == before
