"""`deploy --trust`: only what the holder of a key signed goes into a repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bertmp import models
from bertmp.core.errors import GateFailed, InputError
from bertmp.export.bundle import Bundle
from bertmp.export.parity.signature import SIGNATURE, Signer, check_signature
from bertmp.serve.deployable import Accepted, inspect_bundle
from tests.conftest import RunBertmp
from tests.serve.bundles import altered, deploy, with_stage
from tests.signing_keys import Keys, make_keys, require_model_signing

require_model_signing()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture
def signed(bundle: Path, keys: Keys, tmp_path: Path) -> Path:
    """A signed copy of the bundle for one test."""
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    Signer(keys.private, folder).sign([])
    return folder


def test_a_signed_bundle_is_deployed_and_the_key_recorded(signed: Path, keys: Keys, tmp_path: Path) -> None:
    result = deploy(signed, "trec", tmp_path / "repository", trust=keys.public)
    assert (result.version, result.new) == (1, True)
    key = check_signature(signed, keys.public).key
    (record,) = models(tmp_path / "repository")
    assert record.signed_by == result.signed_by == key
    again = deploy(signed, "trec", tmp_path / "repository")
    assert (again.new, again.signed_by) == (False, key), "the same files, checked before"


def test_an_identical_version_that_was_not_checked_is_recorded_once_it_is(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    assert deploy(signed, "trec", tmp_path / "repository").signed_by == ""
    assert not deploy(signed, "trec", tmp_path / "repository", trust=keys.public).new
    assert models(tmp_path / "repository")[0].signed_by


@pytest.mark.parametrize(
    "name", ["model.onnx", "tokenizer.json", "labels.txt", "config.json", "manifest.json"]
)
def test_a_changed_file_is_refused_and_nothing_written(
    signed: Path, keys: Keys, tmp_path: Path, name: str
) -> None:
    with (signed / name).open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(GateFailed, match=f"has changed since it was signed: {name} differs"):
        deploy(signed, "trec", tmp_path / "repository", trust=keys.public)
    (signed / name).unlink()
    with pytest.raises(GateFailed, match=f"has changed since it was signed: {name} is missing"):
        deploy(signed, "trec", tmp_path / "repository", trust=keys.public)
    assert not (tmp_path / "repository").exists()


def test_an_exchanged_graph_with_a_manifest_that_agrees_is_refused(
    bundle: Path, other_bundle: Path, keys: Keys, tmp_path: Path
) -> None:
    graph = (other_bundle / "model.onnx").read_bytes()
    folder = altered(bundle, tmp_path / "bundle")
    Signer(keys.private, folder).sign([])
    exchanged = altered(folder, tmp_path / "exchanged", model__onnx=graph)
    assert deploy(exchanged, "trec", tmp_path / "careless").new
    with pytest.raises(GateFailed, match=r"manifest\.json differs"):
        deploy(exchanged, "trec", tmp_path / "repository", trust=keys.public)
    assert not (tmp_path / "repository").exists()


def test_a_verdict_turned_into_passed_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    with_stage(signed, "parity", {"verdict": "passed", "passed": True})
    with pytest.raises(GateFailed, match=r"manifest\.json differs"):
        deploy(signed, "trec", tmp_path / "repository", trust=keys.public)


def test_a_failed_verdict_is_refused_although_it_is_signed(signed: Path, keys: Keys, tmp_path: Path) -> None:
    with_stage(signed, "parity", {"verdict": "failed", "passed": False})
    (signed / "certificate.json").write_text("{}")
    Signer(keys.private, signed).sign([])
    with pytest.raises(GateFailed, match="parity did not pass"):
        deploy(signed, "trec", tmp_path / "repository", trust=keys.public)


def test_unsigned_and_another_key_are_refused(
    bundle: Path, signed: Path, keys: Keys, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    theirs = make_keys(tmp_path / "theirs")
    with pytest.raises(GateFailed, match="signature was not made with the key"):
        deploy(signed, "trec", tmp_path / "repository", trust=theirs.public)
    (signed / SIGNATURE).write_text("{}")
    with pytest.raises(GateFailed, match="signature is damaged"):
        deploy(signed, "trec", tmp_path / "repository", trust=keys.public)
    arguments = ("deploy", bundle, "--name", "trec", "--repository", tmp_path / "repository", "--trust")
    done = run_bertmp(*arguments, keys.public)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the bundle is unsigned (")
    assert done.stderr.count("\n") == 1
    done = run_bertmp(*arguments, bundle / "labels.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: not a public key")
    assert not (tmp_path / "repository").exists()


def test_a_folder_that_is_no_bundle_is_bad_input(keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a bundle"):
        deploy(tmp_path, "trec", tmp_path / "repository", trust=keys.public)


def test_a_file_that_changes_while_it_is_deployed_is_not_deployed(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    """Between the check and the copy."""
    checked = check_signature(signed, keys.public)
    deployable = inspect_bundle(Bundle.open(signed), Accepted(unverified=True), trusted=checked)
    with (signed / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(GateFailed, match=r"model\.onnx changed while the bundle was deployed"):
        deployable.fill_encoder(tmp_path)
    with (signed / "tokenizer.json").open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(GateFailed, match=r"tokenizer\.json changed while"):
        deployable.fill_text(tmp_path)


def test_the_command_says_which_key(signed: Path, keys: Keys, tmp_path: Path, run_bertmp: RunBertmp) -> None:
    repository = tmp_path / "repository"
    arguments = ("deploy", signed, "--name", "trec", "--repository", repository, "--trust", keys.public)
    arguments = (*arguments, "--allow-unverified")
    key = check_signature(signed, keys.public).key
    done = run_bertmp(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"signed with the key {key}" in done.stdout
    done = run_bertmp("models", "--repository", repository, "--json")
    assert json.loads(done.stdout)[0]["signed_by"] == key
