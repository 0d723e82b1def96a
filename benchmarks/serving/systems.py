"""The servers that are compared: each is started as its users start it, and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.subprocess_runner import REPOSITORY

MODEL = "bench"
START_SECONDS = 120.0


class SystemFailed(Exception):
    """A server did not start; the message is the end of what it printed."""


@dataclass(frozen=True)
class Endpoint:
    """Where a running system answers texts.

    Attributes:
        address: `host:port` of its HTTP server.
        path: of the address.
        payload: makes the JSON of a request from a text.
        label: finds the label in the JSON of an answer.
    """

    address: str
    path: str
    payload: Callable[[str], Any]
    label: Callable[[Any], str]


@dataclass(frozen=True)
class Prepared:
    """What the systems serve.

    Attributes:
        checkpoint: the classifier as a Hugging Face folder.
        bundle: the same, exported.
        repositories: those of deployed versions, by the precision that they compute in.
        scratch: a folder for logs.
    """

    checkpoint: Path
    bundle: Path
    repositories: Mapping[str, Path]
    scratch: Path


Start = Callable[[], AbstractContextManager[Endpoint]]


def systems(prepared: Prepared) -> dict[str, Start]:
    """Name → how it is started; ours begin with `bertmp`."""
    ours = {
        "bertmp" if precision == "fp32" else f"bertmp {precision}": partial(
            serve_bertmp, repository, prepared
        )
        for precision, repository in prepared.repositories.items()
    }
    return {
        **ours,
        "FastAPI + ONNX Runtime": partial(serve_fastapi, "serve_onnxruntime", prepared),
        "FastAPI + transformers": partial(serve_fastapi, "serve_transformers", prepared),
    }


@contextmanager
def serve_bertmp(repository: Path, prepared: Prepared) -> Iterator[Endpoint]:
    """`bertmp serve` on free ports."""
    ports = [word for name in ("http", "grpc", "metrics", "health") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "bertmp", "serve", "--repository", str(repository), *ports, "--json"]
    with _process(command, {}, prepared.scratch / "bertmp.log", stdout=subprocess.PIPE) as (process, log):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemFailed(_end_of(log))
        address = json.loads(line)["http"]
        yield Endpoint(address, f"v2/models/{MODEL}/infer", _triton_payload, _triton_label)


def _triton_payload(text: str) -> dict[str, Any]:
    tensor = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return {"inputs": [tensor], "outputs": [{"name": "LABEL"}, {"name": "PROBABILITIES"}]}


def _triton_label(answer: Any) -> str:
    return str(next(output["data"][0] for output in answer["outputs"] if output["name"] == "LABEL"))


@contextmanager
def serve_fastapi(app: str, prepared: Prepared) -> Iterator[Endpoint]:
    """One of the apps in `baselines`, under uvicorn with its faster parts, uvloop and httptools."""
    port = _free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", f"benchmarks.baselines.{app}:app", "--port", str(port)),
        *("--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log"),
    ]
    environment = {
        "BUNDLE": str(prepared.bundle),
        "CHECKPOINT": str(prepared.checkpoint),
        "HF_HUB_OFFLINE": "1",
    }
    with _process(command, environment, prepared.scratch / f"{app}.log") as (process, log):
        _wait_for(port, process, log)
        yield Endpoint(f"127.0.0.1:{port}", "classify", lambda text: {"text": text}, _fastapi_label)


def _fastapi_label(answer: Any) -> str:
    return str(answer["label"])


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], log: Path, stdout: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            list(command), cwd=REPOSITORY, env={**os.environ, **environment, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL, stdout=stream if stdout is None else stdout, stderr=stream, text=True,
        )  # fmt: skip
        try:
            yield process, log
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemFailed(_end_of(log))


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]
