"""`bertmp serve` as a process: ready, stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bertmp import infer
from bertmp.serve.http_request import Endpoint
from tests.conftest import RunBertmp

FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@contextmanager
def serving(repository: Path, scratch: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """`bertmp serve` in a group of its own, with `scratch` for its temporary files."""
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "bertmp", "serve", "--repository", str(repository), *FREE, "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.02)


def ended_clean(
    process: subprocess.Popen[str], children: list[psutil.Process], scratch: Path, code: int = 130
) -> str:
    """Asserts that nothing of a server is left; what it printed to standard error."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert list(scratch.iterdir()) == []
    assert not list(Path("/dev/shm").glob(f"bertmp-{process.pid}-*"))
    return stderr


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 0, "")]
)
def test_serve_on_signal_stops_and_leaves_nothing(
    triton: None, repository: Path, tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    with serving(repository, tmp_path / "scratch") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] is True
        assert ready["models"] == ["trec", "trec_encoder"]
        assert len(infer("trec", ["Who wrote Hamlet ?"], url=ready["grpc"])) == 1
        host, port = ready["metrics"].split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.")
        assert Endpoint(ready["health"]).get("/ready").json()["ready"] is True
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 1, "the server and its models' processes"
        process.send_signal(number)
        assert ended_clean(process, children, tmp_path / "scratch", code) == said


def test_serve_on_ctrl_c_before_ready_leaves_nothing(triton: None, repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "scratch") as process:
        us = psutil.Process(process.pid)
        until(us.children)
        children = us.children(recursive=True)
        process.send_signal(signal.SIGINT)
        ended_clean(process, children, tmp_path / "scratch")


def test_serve_with_killed_triton_and_without_repairs_is_an_error(
    triton: None, repository: Path, tmp_path: Path
) -> None:
    with serving(repository, tmp_path / "scratch", "--max-repairs", "0") as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        children = psutil.Process(process.pid).children(recursive=True)
        server = next(child for child in children if child.name() == "tritonserver")
        server.kill()
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert stderr.splitlines()[-1].startswith("error: Triton ended by itself with code -9")
        assert not psutil.wait_procs(children, timeout=5)[1]
        assert list((tmp_path / "scratch").iterdir()) == []


def test_serve_with_a_broken_model_names_it(
    triton: None, repository: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    broken = Path(shutil.copytree(repository, tmp_path / "broken"))
    (broken / "trec_encoder/1/model.onnx").write_bytes(b"no graph")
    (tmp_path / "scratch").mkdir()
    done = run_bertmp("serve", "--repository", broken, *FREE, env={"TMPDIR": str(tmp_path / "scratch")})
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert re.match(r"error: model 'trec(_encoder)?' version 1 does not load: ", line), line
    assert "protobuf" in line.lower()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_serve_with_bad_input_prints_one_line(
    triton: None, repository: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    (tmp_path / "empty").mkdir()
    codeless = Path(shutil.copytree(repository, tmp_path / "codeless"))
    (codeless / "trec/1/model.py").unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = [
            (("--repository", tmp_path / "none"), "no such model repository"),
            (("--repository", tmp_path / "empty"), "no version to serve"),
            (("--repository", codeless), "the version has no code"),
            (("--repository", repository, "--http-port", port), f"port {port} is taken"),
            (
                ("--repository", repository, "--http-port", "70000"),
                "--http-port is 70000 (--http-port): give a number, at least 0, at most 65535",
            ),
            (("--repository", repository, "--http-port", "80", "--grpc-port", "80"), "the same port twice"),
            (("--repository", repository, "--host", "192.0.2.1", "--allow-vulnerable"), "cannot listen"),
            (("--repository", repository, *FREE, "--trace-config", "mode=other"), "mode option: other"),
            (("--repository", repository, *FREE, "--tls-cert", "a.pem"), "a certificate without its key"),
        ]
        for arguments, message in refused:
            done = run_bertmp("serve", *arguments)
            assert (done.returncode, done.stdout) == (2, ""), arguments
            assert done.stderr.startswith("error: ")
            assert message in done.stderr
            assert done.stderr.count("\n") == 1


def test_serve_without_triton_names_the_setup_command(
    repository: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    if shutil.which("tritonserver"):
        pytest.skip("a tritonserver is on the PATH, so Triton is never missing")
    done = run_bertmp("serve", "--repository", repository, env={"BERTMP_HOME": str(tmp_path)})
    assert done.returncode == 4
    assert "run 'bertmp setup triton'" in done.stderr
