"""Installing a Triton server, and finding it again."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bertmp import setup
from bertmp.core.errors import DiskFull, InputError, MissingComponent
from bertmp.core.hardware import machine
from bertmp.core.io import write_json
from bertmp.environment import server_bf16, triton_install
from bertmp.environment.triton_install import (
    HASHES,
    MARKER,
    OPENVINO,
    VERSIONS,
    TritonRuntime,
    find_python,
    find_runtime,
    probe,
    requirements,
    versions_for,
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


def test_an_environment_of_another_recipe_is_left_alone(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of an earlier version of bertmp may be running in it."""
    folder = environment(own_home, "1.26.4")
    assert find_runtime().python.parent.parent == folder
    now = triton_install._folder_name("3.11")
    monkeypatch.setitem(triton_install.VERSIONS, "tokenizers", "99")
    assert triton_install._folder_name("3.11") != now
    with pytest.raises(MissingComponent, match="made by another version of bertmp"):
        find_runtime()


@pytest.mark.parametrize(("python", "openvino"), [("3.10", False), ("3.11", True), ("3.13", True)])
def test_openvino_takes_the_place_of_onnxruntime_where_it_has_a_wheel(python: str, openvino: bool) -> None:
    found = versions_for(python)
    assert (OPENVINO in found, "onnxruntime" in found) == (openvino, not openvino)
    assert {"numpy", "tokenizers"} < found.keys()


def test_the_server_that_setup_made_has_what_its_python_gets(triton: None) -> None:
    found = find_runtime()
    if found.kind == "system":
        pytest.skip("the Triton on the PATH is not ours")
    assert found.openvino == versions_for(found.python_version).get(OPENVINO, "")
    command = [str(found.python), "-c", "import onnxruntime as o; print(o.get_available_providers())"]
    providers = subprocess.check_output(command, text=True)
    assert ("OpenVINOExecutionProvider" in providers) == bool(found.openvino)
    assert "CPUExecutionProvider" in providers


@pytest.mark.parametrize(
    ("features", "openvino", "kind", "reason"),
    [
        ((), "1.24.1", "bundled", "the processor has no BF16 (AVX512-BF16 or AMX)"),
        (("amx_bf16",), "", "bundled", "the Triton environment's Python 3.10 has no OpenVINO"),
        (("amx_bf16",), "", "system", "the Triton on the PATH has a backend of its own for graphs"),
        (("avx512_bf16",), "1.24.1", "bundled", ""),
    ],
)
def test_why_a_server_here_has_no_bf16(
    features: tuple[str, ...], openvino: str, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Path("server")
    runtime = TritonRuntime(
        kind,
        "2.51.0",
        where,
        where,
        where,
        python_version="3.10",
        openvino=openvino,  # type: ignore[arg-type]
    )
    monkeypatch.setattr(server_bf16, "find_runtime", lambda: runtime)
    assert server_bf16.why_no_bf16(replace(machine(), features=features)) == reason


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
