"""A server that is stopped answers what it has taken."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bertmp import infer
from bertmp.serve.http_request import Endpoint
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server import TritonServer
from tests.serve.test_serve_command import serving, until

TEXTS = [f"How many people lived on the coast in the year {number} ? " * 4 for number in range(32)]


class Asking:
    """A client that asks again as soon as it has its answer, over one connection, until it is refused."""

    def __init__(self, address: str, protocol: str) -> None:
        self.asked: list[float] = []
        self.answered = 0
        self.refusal = ""
        target = self._grpc if protocol == "grpc" else self._http
        self.thread = threading.Thread(target=target, args=(address,))
        self.thread.start()

    def _http(self, address: str) -> None:
        tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [len(TEXTS), 1], "data": TEXTS}
        body, connection = json.dumps({"inputs": [tensor]}), http.client.HTTPConnection(address, timeout=60)
        while not self.refusal:
            self.asked.append(time.monotonic())
            try:
                connection.request("POST", "/v2/models/trec/infer", body)
                reply = connection.getresponse()
                reply.read()
                self._count("" if reply.status == 200 else str(reply.status))
            except (OSError, http.client.HTTPException) as error:
                self._count(repr(error))

    def _grpc(self, address: str) -> None:
        import tritonclient.grpc as library
        from tritonclient.utils import InferenceServerException

        tensor = library.InferInput("TEXT", [len(TEXTS), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(TEXTS, dtype=object).reshape(-1, 1))
        with library.InferenceServerClient(address) as client:
            while not self.refusal:
                self.asked.append(time.monotonic())
                try:
                    client.infer("trec", [tensor])
                    self._count("")
                except InferenceServerException as error:
                    self._count(str(error))

    def _count(self, refusal: str) -> None:
        self.answered += not refusal
        self.refusal = refusal


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_stopped_server_answers_what_it_has_taken(
    triton: None, repository: Path, tmp_path: Path, protocol: str
) -> None:
    with serving(repository, tmp_path / "scratch") as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())[protocol]
        clients = [Asking(address, protocol) for _ in range(6)]
        while min(client.answered for client in clients) < 5:
            time.sleep(0.01)
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        took = time.monotonic() - stopped
        for client in clients:
            client.thread.join(30)
    assert process.returncode == 0
    assert stderr == ""
    assert took < 12
    for client in clients:
        before = [asked for asked in client.asked if asked < stopped]
        assert client.answered >= len(before), client.refusal


@pytest.mark.slow
def test_stop_delay_keeps_answering_while_ready_says_no(
    triton: None, repository: Path, tmp_path: Path
) -> None:
    with serving(repository, tmp_path / "scratch", "--stop-delay", "3") as process:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        health = Endpoint(addresses["health"])
        assert health.get("/ready").ok
        process.send_signal(signal.SIGTERM)
        until(lambda: health.get("/ready").status == 503)
        assert health.get("/ready").json()["reason"] == "the server is stopping"
        assert len(infer("trec", ["Who ?"], url=addresses["grpc"])) == 1
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.slow
def test_server_whose_requests_do_not_end_is_stopped_all_the_same(triton: None, tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "slow"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(
        "import time\nclass TritonPythonModel:\n    def execute(self, requests):\n        time.sleep(3600)\n"
    )
    (folder / "config.pbtxt").write_text(
        'name: "slow"\nbackend: "python"\ninput { name: "X" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "Y" data_type: TYPE_FP32 dims: 1 }\n'
    )
    lines: list[str] = []
    options = ServeOptions(
        folder.parent,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        drain_seconds=1,
        progress=lambda line, *_: lines.append(line),
    )
    with TritonServer(options) as running:
        connection = http.client.HTTPConnection(running.http, timeout=60)
        tensor = {"name": "X", "datatype": "FP32", "shape": [1], "data": [1.0]}
        connection.request("POST", "/v2/models/slow/infer", json.dumps({"inputs": [tensor]}))
        started = time.monotonic()
    assert 1 <= time.monotonic() - started < 10
    assert "warning: slow did not finish within 1 s: requests are cut off" in lines
    connection.close()
