"""Files are written whole or not at all, and what stops them is said in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertmp.core.errors import DiskFull, InputError
from bertmp.core.io import (
    atomic_file,
    atomic_folder,
    read_json,
    read_toml,
    sha256_file,
    swap_in,
    write_json,
    write_toml,
    writing_to,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_readable(tmp_path: Path) -> None:
    target = tmp_path / "new" / "value.json"
    write_json(target, {"größe": 1})
    assert read_json(target) == {"größe": 1}
    assert names(target.parent) == ["value.json"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_settings_come_back_from_toml(tmp_path: Path) -> None:
    values = {
        "text": 'a "quote", a \\ and a\ttab\x7f\u2028é',
        "number": 3,
        "rate": 1e-05,
        "truth": True,
        "weights": (0.5, 2.0),
        "names": ["a", "b"],
        "nothing": None,
    }
    write_toml(tmp_path / "config.toml", values)
    expected = {**values, "weights": [0.5, 2.0]}
    del expected["nothing"]
    assert read_toml(tmp_path / "config.toml") == expected


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_interrupted_folder_leaves_the_old_one(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "a").write_text("old")

    def write_half() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "b").write_text("half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert names(target) == ["a"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / content).write_text(content)
    assert names(target) == ["two"]
    assert names(tmp_path) == ["bundle"]


def test_an_interrupt_between_the_two_renames_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, new = tmp_path / "bundle", tmp_path / "new"
    target.mkdir()
    (target / "a").write_text("old")
    new.mkdir()
    rename = os.replace

    def interrupted(source: Path, destination: Path) -> None:
        if source == new:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swap_in(new, target)
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["bundle", "new"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "big"
    script = (
        "import sys; from pathlib import Path; from bertmp.core.io import atomic_folder\n"
        "from bertmp.core.errors import BertmpError\n"
        "try:\n"
        "    with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'a').write_text('x')\n"
        "        with open('/dev/full', 'w') as full: full.write('x' * 10_000)\n"
        "except BertmpError as error:\n"
        "    print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "no space left on the disk" in done.stdout
    assert str(target) in done.stdout
    assert names(tmp_path) == []


def test_nested_writing_without_space_names_the_outermost_target(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "bundle") as folder, atomic_file(folder / "model.onnx"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match="no space left on the disk") as caught:
        write()
    assert caught.value.where == str(tmp_path / "bundle")
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        with pytest.raises(InputError, match="a file stands where a folder is needed"):
            write_json(target, 1)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    error = PermissionError(13, "Permission denied", str(tmp_path / "a"))
    with pytest.raises(InputError, match="cannot be written"), writing_to(tmp_path / "a"):
        raise error


def test_an_unreadable_source_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    error = PermissionError(13, "Permission denied", "/elsewhere/source")
    with pytest.raises(PermissionError), writing_to(tmp_path / "a"):
        raise error


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a JSON file"):
        read_json(path)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "none.json")


def test_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_keeps_numbers_and_order(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "ü"}
    write_json(tmp_path / "a.json", value)
    assert json.dumps(read_json(tmp_path / "a.json")) == json.dumps(value)


def test_copied_folder_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in "ab":
        (tmp_path / "source" / name).write_text("x")

    def copy(source: str, target: str) -> None:
        with open("/dev/full", "w") as full:  # it refuses as a full disk does
            full.write(Path(source).read_text())

    with (
        pytest.raises(DiskFull, match="no space left on the disk") as raised,
        writing_to(tmp_path / "target"),
    ):
        shutil.copytree(tmp_path / "source", tmp_path / "target", copy_function=copy)
    assert str(raised.value).count(str(tmp_path)) == 1
