"""The load generator: fetched once, found again, and not needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bertmp import setup
from bertmp.environment.perf_analyzer import find_perf_analyzer, install_perf_analyzer


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's libraries, in a home without a load generator."""
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "libs"
    folder.mkdir()
    for name in ("libb64-1.so.0d", "libcudart-1.so.12"):
        (folder / name).write_text("")
    return folder


def test_fetched_perf_analyzer_runs(triton: None) -> None:
    tool = find_perf_analyzer()
    if tool is None:
        pytest.skip("perf_analyzer could not be fetched")
    command = [str(tool.executable), "--version"]
    done = subprocess.run(
        command, env=tool.environment(os.environ), capture_output=True, text=True, check=False
    )
    assert "Perf Analyzer" in done.stderr
    assert setup("triton").versions["perf_analyzer"] == tool.version


def test_no_index_leaves_setup_without_perf_analyzer(
    libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(libraries))
    lines: list[str] = []
    assert install_perf_analyzer(libraries, lambda line, *_: lines.append(line)) == ""
    assert find_perf_analyzer() is None
    assert lines[-1].startswith("perf_analyzer was not fetched, bertmp bench measures with Python clients: ")


def test_library_missing_from_the_server_is_told(libraries: Path) -> None:
    (libraries / "libb64-1.so.0d").unlink()
    lines: list[str] = []
    assert install_perf_analyzer(libraries, lambda line, *_: lines.append(line)) == ""
    assert "the server has no libb64" in lines[-1]


def test_perf_analyzer_on_the_path_comes_first(libraries: Path, tmp_path: Path) -> None:
    (tmp_path / "perf_analyzer").write_text("#!/bin/sh\n")
    (tmp_path / "perf_analyzer").chmod(0o755)
    tool = find_perf_analyzer()
    assert tool is not None
    assert (tool.executable, tool.libraries) == (tmp_path / "perf_analyzer", None)
    assert tool.environment({"A": "1"}) == {"A": "1"}
    assert install_perf_analyzer(libraries, lambda *_: None) == "unknown"
