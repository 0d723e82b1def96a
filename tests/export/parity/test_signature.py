"""A bundle's signature: what it covers, what its check finds, and which keys are refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bertmp import parity, verify
from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.io import sha256_file
from bertmp.export.bundle import Bundle
from bertmp.export.parity import signature
from bertmp.export.parity.golden_examples import GOLDEN_EXAMPLES
from bertmp.export.parity.signature import PASSWORD, SIGNATURE, Signer, check_signature
from tests.conftest import RunBertmp
from tests.export.parity_bundles import damage
from tests.signing_keys import Keys, make_keys, require_model_signing

require_model_signing()

SHIPS = ("model.onnx", "model.fp16.onnx", "precision-plan.json", "config.json", "labels.txt")
RECORDS = ("manifest.json", "certificate.json")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="module")
def others_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "theirs")


@pytest.fixture(scope="module")
def signed_once(exported: Path, labelled: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle; not to be written to."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("signed") / "bundle"))
    parity(folder, labelled, sign=keys.private)
    return folder


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(signed_once, tmp_path / "bundle"))


def changes(bundle: Path, keys: Keys) -> list[str]:
    return [one.sentence() for one in verify(bundle, trust=keys.public).changes]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_an_unchanged_bundle_is_signed_wherever_it_lies(signed: Path, keys: Keys, tmp_path: Path) -> None:
    moved = signed.rename(tmp_path / "moved")
    found = verify(moved, trust=keys.public)
    assert (found.verified, found.signed, found.signature) == (True, True, "signed")
    assert found.changes == ()
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert verify(link, trust=keys.public).verified


def test_exactly_what_ships_is_signed(signed: Path, keys: Keys) -> None:
    files = check_signature(signed, keys.public).files
    made = {
        name for stage in ("export", "convert") for name in Bundle.open(signed).manifest.stages[stage].outputs
    }
    assert set(files) == made | set(RECORDS) | {GOLDEN_EXAMPLES}
    assert files == {name: sha256_file(signed / name) for name in files}


def test_the_librarys_own_command_accepts_it_and_names_a_change(signed: Path, keys: Keys) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    command += ["--signature", str(signed / SIGNATURE), "--public_key", str(keys.public)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    flip_a_bit(signed / "model.onnx")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "model.onnx" in done.stdout + done.stderr


@pytest.mark.parametrize("name", [*SHIPS, *RECORDS])
def test_one_changed_bit_is_named(signed: Path, keys: Keys, name: str) -> None:
    flip_a_bit(signed / name)
    assert f"{name} differs" in changes(signed, keys)


@pytest.mark.parametrize("name", ["model.fp16.onnx", "labels.txt", "manifest.json", "certificate.json"])
def test_a_missing_file_is_named(signed: Path, keys: Keys, name: str) -> None:
    (signed / name).unlink()
    assert f"{name} is missing" in changes(signed, keys)


def test_an_added_file_is_named(signed: Path, keys: Keys) -> None:
    (signed / "engine").mkdir()
    (signed / "engine/model.plan").write_bytes(b"an engine")
    (signed / ".git").mkdir()
    (signed / ".git/config").write_text("")
    added = "was added since the bundle was signed"
    assert changes(signed, keys) == [f".git/config {added}", f"engine/model.plan {added}"]


def test_a_link_in_place_of_a_file_is_named(signed: Path, keys: Keys, tmp_path: Path) -> None:
    same = (signed / "model.onnx").rename(tmp_path / "model.onnx")
    (signed / "model.onnx").symlink_to(same)
    assert changes(signed, keys) == ["model.onnx is a link"]


def test_a_changed_report_is_named_though_it_does_not_ship(signed: Path, keys: Keys) -> None:
    flip_a_bit(signed / "parity/report.json")
    assert changes(signed, keys) == ["parity/report.json differs"]


def test_another_key_and_an_unsigned_bundle_are_not_verified(
    signed: Path, keys: Keys, others_keys: Keys, run_bertmp: RunBertmp
) -> None:
    found = verify(signed, trust=others_keys.public)
    assert (found.verified, found.signature, found.signed_by) == (False, "of another key", "")
    done = run_bertmp("verify", signed, "--trust", others_keys.public)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("not verified: model.sig was not made with the key that belongs to ")
    assert done.stdout.count("\n") == 1
    (signed / SIGNATURE).unlink()
    assert changes(signed, keys) == ["model.sig is missing: the bundle is unsigned"]
    assert verify(signed).verified
    assert verify(signed).signature == "unsigned"


def test_a_forged_statement_is_not_believed(signed: Path, keys: Keys) -> None:
    """Somebody who cannot sign puts the hash of their own graph into the statement."""
    from base64 import b64decode, b64encode

    before = sha256_file(signed / "model.onnx")
    flip_a_bit(signed / "model.onnx")
    bundle = json.loads((signed / SIGNATURE).read_text())
    statement = b64decode(bundle["dsseEnvelope"]["payload"]).decode()
    assert before in statement
    statement = statement.replace(before, sha256_file(signed / "model.onnx"))
    bundle["dsseEnvelope"]["payload"] = b64encode(statement.encode()).decode()
    (signed / SIGNATURE).write_text(json.dumps(bundle))
    assert verify(signed, trust=keys.public).signature == "of another key"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"verificationMaterial": {"publicKey": {"hint": ""}}}'])
def test_a_damaged_signature_is_said(signed: Path, keys: Keys, content: str) -> None:
    (signed / SIGNATURE).write_text(content)
    assert verify(signed, trust=keys.public).signature == "damaged"


def test_what_another_tool_left_out_is_named(signed: Path, keys: Keys) -> None:
    from model_signing import hashing, signing

    left_out = hashing.Config().set_ignored_paths(
        paths=[SIGNATURE, "parity", "model.onnx", "certificate.json"]
    )
    config = signing.Config().use_elliptic_key_signer(private_key=keys.private).set_hashing_config(left_out)
    config.sign(signed, signed / SIGNATURE)
    assert changes(signed, keys) == ["model.onnx was not signed", "certificate.json was not signed"]


def test_a_new_export_and_a_new_run_need_a_new_signature(signed: Path, keys: Keys, labelled: Path) -> None:
    parity(signed, labelled)
    assert changes(signed, keys) == ["certificate.json differs", "manifest.json differs"]
    parity(signed, labelled, sign=keys.private)
    assert verify(signed, trust=keys.public).verified
    damage(signed, 0.001)  # what a conversion with other options does
    assert "model.fp16.onnx differs" in changes(signed, keys)


def test_a_failed_verdict_is_not_signed(bundle: Path, labelled: Path, keys: Keys) -> None:
    damage(bundle, 0.5)
    said: list[str] = []
    result = parity(bundle, labelled, sign=keys.private, progress=lambda line, *_: said.append(line))
    assert result.verdict == "failed"
    assert not (bundle / SIGNATURE).exists()
    assert said[-1] == "not signed: the verdict is failed"


@pytest.mark.parametrize("report", [".", "reports/first"])
def test_a_report_elsewhere_in_the_bundle_does_not_ship(
    bundle: Path, labelled: Path, keys: Keys, report: str
) -> None:
    parity(bundle, labelled, sign=keys.private, report=bundle / report)
    assert verify(bundle, trust=keys.public).verified
    files = check_signature(bundle, keys.public).files
    assert "certificate.json" in files
    assert not [name for name in files if name.endswith((".html", ".md", ".xml", "report.json"))]


def test_an_interrupted_signing_leaves_the_signature_before(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()}

    def interrupt(source: object, target: object) -> None:
        raise KeyboardInterrupt

    signer = Signer(keys.private, signed)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        signer.sign([])
    assert {path: path.read_bytes() for path in signed.rglob("*") if path.is_file()} == before


def test_signing_and_checking_open_no_connection(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    Signer(keys.private, signed).sign(["parity"])
    assert verify(signed, trust=keys.public).signed


@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_larger_curves_and_an_encrypted_key_sign(
    signed: Path, tmp_path: Path, curve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = make_keys(tmp_path / "keys", ec.generate_private_key(getattr(ec, curve)()), b"secret")
    with pytest.raises(InputError, match=f"the private key is encrypted .*{PASSWORD}"):
        Signer(keys.private, signed)
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(InputError, match=f"the password in {PASSWORD} is wrong"):
        Signer(keys.private, signed)
    monkeypatch.setenv(PASSWORD, "secret")
    Signer(keys.private, signed).sign(["parity"])
    assert verify(signed, trust=keys.public).signed


def test_every_wrong_password_is_said_to_be_one(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many, some decrypt to something whose padding is right."""
    keys = make_keys(tmp_path / "keys", password=b"secret")
    for number in range(1000):
        monkeypatch.setenv(PASSWORD, f"wrong-{number}")
        with pytest.raises(InputError, match=f"the password in {PASSWORD} is wrong"):
            Signer(keys.private, signed)


def test_bad_keys_are_refused(
    signed: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    bad = [
        make_keys(tmp_path / "rsa", rsa.generate_private_key(65537, 2048)),
        make_keys(tmp_path / "ed25519", ed25519.Ed25519PrivateKey.generate()),
        make_keys(tmp_path / "curve", ec.generate_private_key(ec.SECP256K1())),
        Keys(keys.public, keys.private),
        Keys(signed / "labels.txt", signed / "labels.txt")._replace(private=tmp_path / "rsa/key.pub"),
    ]
    for pair in bad:
        with pytest.raises(InputError, match="not a private key that can sign"):
            Signer(pair.private, signed)
        with pytest.raises(InputError, match="not a public key"):
            check_signature(signed, pair.public)
    for check in (Signer, lambda key, folder: check_signature(folder, key)):
        with pytest.raises(InputError, match="no such file"):
            check(tmp_path / "gone.pem", signed)
    monkeypatch.setenv(PASSWORD, "secret")
    with pytest.raises(InputError, match="the private key is not encrypted"):
        Signer(keys.private, signed)


def test_a_bundle_with_a_link_or_the_key_itself_is_refused_before_parity_is_run(
    bundle: Path, labelled: Path, keys: Keys, tmp_path: Path
) -> None:
    shutil.copyfile(keys.private, bundle / "key.pem")
    with pytest.raises(InputError, match="the private key lies in the bundle"):
        parity(bundle, labelled, sign=bundle / "key.pem")
    (bundle / "key.pem").unlink()
    (bundle / "weights").symlink_to(tmp_path)
    with pytest.raises(InputError, match="weights is a link"):
        parity(bundle, labelled, sign=keys.private)
    assert not (bundle / "certificate.json").exists()


def test_a_missing_library_is_said(signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(MissingComponent, match=r"pip install '\.\[sign\]'"):
        Signer(keys.private, signed)
    with pytest.raises(MissingComponent) as missing:
        verify(signed, trust=keys.public)
    assert missing.value.exit_code == 4
    assert verify(signed).signature == "not checked"


@pytest.mark.slow
def test_the_commands_sign_and_verify(
    bundle: Path, labelled: Path, keys: Keys, run_bertmp: RunBertmp
) -> None:
    done = run_bertmp("parity", bundle, "--data", labelled, "--sign", keys.private)
    assert done.returncode == 0, done.stderr
    assert f"signed: {bundle / SIGNATURE}" in done.stderr
    done = run_bertmp("verify", bundle)
    assert done.returncode == 0
    assert "its signature was not checked" in done.stdout
    done = run_bertmp("verify", bundle, "--trust", keys.public, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["signed"], found["signature"], len(found["signed_by"])) == (True, "signed", 64)
    done = run_bertmp("parity", bundle, "--data", labelled)
    assert f"the signature in {SIGNATURE} is of an earlier run and no longer holds" in done.stderr
    flip_a_bit(bundle / "manifest.json")
    done = run_bertmp("verify", bundle, "--trust", keys.public)
    assert (done.returncode, done.stderr) == (1, "")
    assert "changed: manifest.json differs" in done.stdout.splitlines()
    done = run_bertmp("verify", bundle, "--trust", labelled)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: not a public key")
    assert done.stderr.count("\n") == 1
    assert signature.PASSWORD in run_bertmp("parity", "--help", env={"COLUMNS": "200"}).stdout
