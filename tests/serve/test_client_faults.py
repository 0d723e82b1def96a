"""What clients say of a server that fails: its fault, never the caller's; and what they send again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bertmp.core.errors import AnswerTooLate, InputError, RequestRefused, ServerFault
from bertmp.serve import AsyncClient, Client, RetryPolicy
from bertmp.serve.faults import error_of_reply
from bertmp.serve.retry import NO_RETRIES, Attempts
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer
from bertmp.serve.serving_options import Protocol
from tests.conftest import RunBertmp

UNKNOWN = "Request for unknown model"
DECODING = "an exception occurred in the client while decoding the response"
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.fixture
def server(triton: None, folder: Path) -> Iterator[RunningServer]:
    """One that nothing watches."""
    with TritonServer(ServeOptions(folder, http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


def address(running: RunningServer, protocol: str) -> str:
    return f"{protocol}://{running.grpc if protocol == 'grpc' else running.http}"


def kill_workers(running: RunningServer, model: str) -> None:
    workers = [
        one
        for one in psutil.Process(running.pid).children(recursive=True)
        if any(argument.startswith(f"{model}_") for argument in one.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers, timeout=10)


async def ask_async(url: str, retry: RetryPolicy, timeout: float = 30) -> None:
    async with AsyncClient(url, retry=retry, timeout=timeout) as client:
        await client.ask("trec", ["Who ?"])


def stop(pid: int) -> None:
    """Stops a process; returns when none of its threads runs any more: the signal itself does not wait."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    threads = list(Path("/proc", str(pid)).glob("task/*/stat"))
    while any(thread.read_text().rpartition(")")[2].split()[0] != "T" for thread in threads):
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.01)


@pytest.mark.slow
def test_dead_worker_is_the_servers_fault(server: RunningServer, run_bertmp: RunBertmp) -> None:
    with Client(address(server, "grpc")) as client:
        assert client.ask("trec", ["Who ?"])
    kill_workers(server, "trec")
    for protocol in PROTOCOLS:
        url = address(server, protocol)
        with (
            Client(url, retry=NO_RETRIES) as client,
            pytest.raises(ServerFault, match=r"Stub process .* is not healthy.*: look at") as failed,
        ):
            client.ask("trec", ["Who ?"])
        assert failed.value.retryable
        with pytest.raises(ServerFault, match="is not healthy"):
            asyncio.run(ask_async(url, NO_RETRIES))
        done = run_bertmp("infer", "trec", "Who ?", "--url", url, "--timeout", "3")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert done.stderr.startswith("error: Stub process ")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_that_hangs_does_not_answer_in_time(server: RunningServer, protocol: Protocol) -> None:
    url = address(server, protocol)
    with Client(url, timeout=1.0) as client:
        client.ask("trec", ["Who ?"])
        stop(server.pid)
        try:
            for call in (
                lambda: client.ask("trec", ["Who ?"]),
                lambda: asyncio.run(ask_async(url, RetryPolicy(), timeout=1.0)),
            ):
                started = time.monotonic()
                with pytest.raises(ServerFault, match="does not answer in time"):
                    call()
                assert 0.9 < time.monotonic() - started < 15
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert client.ask("trec", ["Who ?"])  # the same client goes on


@pytest.mark.slow
def test_server_killed_while_a_file_is_asked_is_the_servers_fault(
    server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"what is {number} ?\n" for number in range(1_000_000)))
    command = [sys.executable, "-m", "bertmp", "infer", "trec", "--data", str(file), "--url", server.grpc]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        os.kill(server.pid, signal.SIGKILL)
        rest = process.stdout.read()
        [error] = process.stderr.read().decode().splitlines()
    assert process.returncode == 1
    assert len(rest.splitlines()) < 999_999
    assert error.startswith("error: the server stopped answering")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_that_comes_back_answers_what_was_asked_meanwhile(
    triton: None, folder: Path, protocol: Protocol
) -> None:
    """The request is sent again until the server is there; a client that never retries fails."""
    first = ServeOptions(folder, http_port=0, grpc_port=0, metrics_port=0)
    patient = RetryPolicy(attempts=1000, longest_delay=0.2)
    found: list[str] = []
    with TritonServer(first) as running:
        url = address(running, protocol)
        client, hasty = Client(url, retry=patient, timeout=120), Client(url, retry=NO_RETRIES)
        for one in (client, hasty):
            one.ask("trec", ["Who ?"])
        os.kill(running.pid, signal.SIGKILL)
        psutil.Process(running.pid).wait(10)
    with pytest.raises(ServerFault, match="the server stopped answering"):
        hasty.ask("trec", ["Who ?"])
    asking = threading.Thread(target=lambda: found.append(client.ask("trec", ["Who ?"])[0].text))
    asking.start()
    ports = {f"{name}_port": int(getattr(running, name).rpartition(":")[2]) for name in ("http", "grpc")}
    with TritonServer(ServeOptions(folder, metrics_port=0, **ports)):
        asking.join(60)
    assert found == ["Who ?"]


@pytest.mark.parametrize(
    ("message", "status", "kind", "retryable"),
    [
        ("Stub process 'trec_0_0' is not healthy.", "StatusCode.INTERNAL", ServerFault, True),
        ("Stub process 'trec_0_0' is not healthy.", "500", ServerFault, True),
        ("Exceeds maximum queue size", "StatusCode.UNAVAILABLE", ServerFault, True),
        ("Exceeds maximum queue size", "503", ServerFault, True),
        ("slow down", "429", ServerFault, True),
        ("", "502", ServerFault, True),
        (f"{DECODING}: Invalid value\nresponse: <html>", "502", ServerFault, True),
        (f"{DECODING}: Invalid value\nresponse: <html>", "413", RequestRefused, None),
        ("Socket closed", "StatusCode.UNAVAILABLE", ServerFault, True),
        ("CUDA error", "StatusCode.INTERNAL", ServerFault, False),
        ("[ONNXRuntimeError] : 6", "500", ServerFault, False),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", AnswerTooLate, False),
        ("the text is empty", "StatusCode.INVALID_ARGUMENT", RequestRefused, None),
        ("the text is empty", "400", RequestRefused, None),
        ("failed to parse the request JSON buffer: Invalid value. at 0", "500", RequestRefused, None),
        ("Unable to parse request", "StatusCode.INTERNAL", RequestRefused, None),
        (f"{UNKNOWN}: 'a' is not found", "404", InputError, None),
        (f"{UNKNOWN}: 'a' version 2 is not at ready state", "StatusCode.UNAVAILABLE", ServerFault, True),
        (f"{UNKNOWN}: 'a' version 2 is not at ready state", "503", ServerFault, True),
    ],
)
def test_reply_is_the_servers_fault_or_the_callers(
    message: str, status: str, kind: type, retryable: bool | None
) -> None:
    error = error_of_reply(message, status, "trec", "host:1")
    assert type(error) is kind
    assert getattr(error, "retryable", None) is retryable
    assert "<html>" not in str(error)
    assert error.exit_code == (1 if issubclass(kind, ServerFault) else 2)


def test_pauses_grow_and_end_with_the_deadline() -> None:
    fault = ServerFault("full", retryable=True)
    attempts = Attempts(RetryPolicy(attempts=5, first_delay=1.0, longest_delay=4.0), timeout=60)
    pauses = [attempts.pause_after(fault) for _ in range(5)]
    assert pauses[-1] is None
    for pause, full in zip(pauses, (1.0, 2.0, 4.0, 4.0), strict=False):
        assert full / 2 <= (pause or 0) <= full
    assert Attempts(RetryPolicy(first_delay=1.0), timeout=0.4).pause_after(fault) is None
    assert Attempts(RetryPolicy(), timeout=60).pause_after(ServerFault("broken")) is None
    assert Attempts(RetryPolicy(), timeout=60).pause_after(InputError("wrong")) is None
