"""`bertmp parity`: what it prints, its exit codes, bad usage and an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertmp.export.bundle import Manifest
from tests.export.parity_bundles import damage


def test_the_command_prints_its_figures_and_the_reports_path(
    bundle: Path, labelled: Path, run_bertmp: Callable[..., Any]
) -> None:
    done = run_bertmp("parity", bundle, "--data", labelled)
    assert done.returncode == 0, done.stderr
    assert "torch-fp32" in done.stdout
    assert "two answers to the same row: torch-fp32 " in " ".join(done.stdout.split())
    assert str(bundle / "parity" / "report.html") in done.stdout
    told = run_bertmp("parity", bundle, "--data", labelled, "--json")
    assert json.loads(told.stdout)["passed"] is True


def test_the_command_ends_with_1_where_a_gate_fails(
    bundle: Path, labelled: Path, run_bertmp: Callable[..., Any]
) -> None:
    damage(bundle, 0.5)
    done = run_bertmp("parity", bundle, "--data", labelled)
    assert done.returncode == 1
    assert "onnx-fp16 max_error" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gates", "gates.toml"], "unknown gate 'max_eror'"),
        (["--server", "localhost:1"], "no --model"),
        (["--server", "grpc://", "--model", "x"], "no server's address (--server grpc://)"),
        (["--server", "localhost:1", "--server", "grpc://localhost:2", "--model", "x"], "two servers of one"),
        (
            ["--server", "http://localhost:1", "--protocol", "grpc", "--model", "x"],
            "--protocol grpc and an address of another protocol",
        ),
        (["--require", "tirton"], "unknown stage 'tirton' (--require)"),
        (["--protocol", "carrier-pigeon"], "unknown value 'carrier-pigeon' (--protocol)"),
        (["--text-column", "question"], "error:"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    bundle: Path,
    labelled: Path,
    tmp_path: Path,
    run_bertmp: Callable[..., Any],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "gates.toml").write_text("[onnx-fp16]\nmax_eror = 1\n")
    data = labelled
    if "--text-column" in options:
        data = tmp_path / "data.jsonl"
        data.write_text('{"text": "w1"}\n')
    done = run_bertmp("parity", bundle, "--data", data, *options, cwd=tmp_path, env=_importable())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (bundle / "parity").exists()


def _importable() -> dict[str, str]:
    """For a run from another folder, where the package may not be installed."""
    return {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def test_an_interruption_leaves_nothing_half_written(bundle: Path, texts: list[str], tmp_path: Path) -> None:
    data = tmp_path / "many.txt"
    data.write_text("\n".join(texts * 2000))
    before = sorted(path.name for path in bundle.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "bertmp", "parity", str(bundle), "--data", str(data)],
        env={**os.environ, **_importable()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for_library(process.pid, "libtorch")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    assert sorted(path.name for path in bundle.iterdir()) == before
    assert "parity" not in Manifest.load(bundle).stages


def _wait_for_library(process: int, name: str) -> None:
    """Until the process has loaded a library: for parity, its first stage has begun."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if name in Path(f"/proc/{process}/maps").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"{name} was not loaded")
