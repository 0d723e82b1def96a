"""Installing a Triton server, and finding it again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bertmp import setup
from bertmp.core.errors import DiskFull, InputError, MissingComponent
from bertmp.core.io import write_json
from bertmp.environment import triton_install
from bertmp.environment.triton_install import (
    HASHES,
    MARKER,
    VERSIONS,
    find_python,
    find_runtime,
    probe,
    requirements,
)
from bertmp.environment.wheels import run_tool


def test_second_setup_does_nothing(triton: None) -> None:
    again = setup("triton")
    assert again.installed is False
    assert find_runtime().executable.is_file()
    with pytest.raises(InputError, match="unknown value 'tensorrt'"):
        setup("tensorrt")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty BERTMP_HOME and a PATH without a Triton of the system's."""
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
    folders = os.environ["PATH"].split(os.pathsep)
    kept = [folder for folder in folders if not (Path(folder) / "tritonserver").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(kept))
    return tmp_path / "home"


def environment(home: Path, numpy: str) -> Path:
    """An environment as `setup` leaves it, as far as `find_runtime` looks."""
    folder = home / "triton" / "2.51.0-python3.11"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "lib/python3.11/site-packages" / f"numpy-{numpy}.dist-info").mkdir(parents=True)
    record = {"recipe": triton_install._recipe(), "library": str(folder), "python": "3.11"}
    write_json(folder / MARKER, {**record, "versions": {"tritonserver": "2.51.0"}})
    return folder


def test_find_runtime_of_an_incomplete_setup_is_refused(own_home: Path) -> None:
    folder = environment(own_home, "1.26.4")
    assert find_runtime().version == "2.51.0"
    (folder / MARKER).unlink()
    with pytest.raises(MissingComponent, match=r"set-up was interrupted.*bertmp setup triton"):
        find_runtime()


def test_find_runtime_with_numpy_2_is_refused(own_home: Path) -> None:
    environment(own_home, "2.0.1")
    with pytest.raises(MissingComponent, match=r"numpy is not 1\.x") as raised:
        find_runtime()
    assert raised.value.exit_code == 2  # it is there, and what is in it is wrong


def test_setup_on_a_full_disk_says_so(own_home: Path, tmp_path: Path) -> None:
    """What pip prints where it finds no space; /dev/full refuses as a full disk does."""
    command = [sys.executable, "-c", "open('/dev/full', 'w').write('x' * 10_000)"]
    with pytest.raises(DiskFull, match="cannot install: no space left on the disk") as raised:
        run_tool(command, "cannot install", tmp_path)
    assert raised.value.exit_code == 2


def test_find_runtime_prefers_a_system_triton(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of NVIDIA's container."""
    opt = tmp_path / "opt" / "tritonserver"
    for backend in ("python", "onnxruntime", "tensorrt"):
        (opt / "backends" / backend).mkdir(parents=True)
    (opt / "bin").mkdir()
    (opt / "bin" / "tritonserver").touch(mode=0o755)
    (opt / "TRITON_VERSION").write_text("2.60.0\n")
    monkeypatch.setenv("PATH", str(opt / "bin"), prepend=os.pathsep)
    found = find_runtime()
    assert (found.kind, found.version, found.has_backend("tensorrt")) == ("system", "2.60.0", True)
    assert setup("triton").installed is False


def test_setup_without_a_network_leaves_nothing(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MissingComponent, match="cannot download nvidia-pytriton"):
        setup("triton")
    assert not list(own_home.glob("triton/*-python*"))


def test_find_python_without_shared_library_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert probe(tmp_path / "python") is None
    assert probe(Path("/bin/true")) is None
    monkeypatch.setenv("BERTMP_TRITON_PYTHON", str(tmp_path / "python"))
    with pytest.raises(MissingComponent, match="no Python that Triton can load"):
        find_python()


def test_every_package_is_pinned_by_hash() -> None:
    lines = requirements().splitlines()
    assert len(lines) == len(VERSIONS)
    assert all("--hash=sha256:" in line for line in lines)
    assert all(len(digest) == 64 for digests in HASHES.values() for digest in digests)
    assert VERSIONS["numpy"].startswith("1."), "numpy 2 corrupts the server's tensors"
