"""A full queue and a request that waits too long: refused at once, in the protocol's own words."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertmp.serve.golden import GoldenCase, Tensor, write_golden
from bertmp.serve.http_request import Endpoint, Reply
from bertmp.serve.model_signature import read_model_config, render
from bertmp.serve.queueing import MAX_QUEUE, QUEUE_SECONDS, bound_queue
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer
from bertmp.serve.watchdog import Watchdog
from tests.serve.test_serve_command import until
from tests.serve.test_watchdog import FREE

CODE = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(one, "X").as_numpy() for one in requests]
        time.sleep(0.25)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", value)]) for value in values]
"""
CONFIG = """
name: "slow"
backend: "python"
max_batch_size: 1
input { name: "X" data_type: TYPE_FP32 dims: 1 }
output { name: "Y" data_type: TYPE_FP32 dims: 1 }
instance_group { count: 1 kind: KIND_CPU }
"""
TENSOR = {"name": "X", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
QUEUE = 3


def write_slow_model(folder: Path, queue: int) -> None:
    """A model of a quarter of a second per request, with our policy but for the queue's length."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(CODE)
    (folder / "config.pbtxt").write_text(CONFIG)
    config = read_model_config(folder / "config.pbtxt")
    bound_queue(config)
    config.dynamic_batching.default_queue_policy.max_queue_size = queue
    (folder / "config.pbtxt").write_text(render(config))


@pytest.fixture(scope="module")
def running(triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A model of a quarter of a second per request, with our policy and a queue of three."""
    folder = tmp_path_factory.mktemp("queue") / "repository" / "slow"
    write_slow_model(folder, QUEUE)
    with TritonServer(ServeOptions(folder.parent, http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


def ask_many(running: RunningServer, count: int, **parameters: Any) -> list[Reply]:
    """`count` requests at the same time, over HTTP."""
    replies: list[Reply] = []
    body = {"inputs": [TENSOR], "parameters": parameters}

    def ask() -> None:
        replies.append(Endpoint(running.http).post("/v2/models/slow/infer", body, 60))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def test_full_queue_refuses_with_503_and_answers_the_others(running: RunningServer) -> None:
    replies = ask_many(running, 24)
    refused = [reply for reply in replies if not reply.ok]
    assert {reply.status for reply in refused} == {503}
    assert all("Exceeds maximum queue size" in reply.reason for reply in refused)
    answered = len(replies) - len(refused)
    assert QUEUE <= answered < 12


def test_full_queue_refuses_with_unavailable_over_grpc(running: RunningServer) -> None:
    import tritonclient.grpc as library

    tensor = library.InferInput("X", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 1), dtype=np.float32))
    found: list[Any] = []
    with library.InferenceServerClient(running.grpc) as client:
        for _ in range(24):
            client.async_infer("slow", [tensor], lambda result, error: found.append(error))
        deadline = time.monotonic() + 60
        while len(found) < 24 and time.monotonic() < deadline:
            time.sleep(0.01)
    refused = [error for error in found if error is not None]
    assert QUEUE <= len(found) - len(refused) < 12
    assert {str(error.status()) for error in refused} == {"StatusCode.UNAVAILABLE"}


def test_request_that_waits_beyond_its_own_limit_is_refused(running: RunningServer) -> None:
    """Each request brings its limit in microseconds; those that are run in time are answered."""
    replies = ask_many(running, 6, timeout=50_000)
    refused = [reply for reply in replies if not reply.ok]
    assert any("expired" in reply.reason for reply in refused), [reply.reason for reply in replies]
    assert {reply.status for reply in refused} == {503}
    assert any(reply.ok for reply in replies)


def test_deployed_models_have_bounded_queues(repository: Path) -> None:
    files = sorted(repository.glob("*/**/*.pbtxt"))
    assert len(files) == 5
    for file in files:
        policy = read_model_config(file).dynamic_batching.default_queue_policy
        assert policy.max_queue_size == MAX_QUEUE
        assert policy.default_timeout_microseconds == QUEUE_SECONDS * 1e6
        assert policy.allow_timeout_override


@pytest.mark.slow
def test_overloaded_model_is_busy_and_is_not_repaired(triton: None, tmp_path: Path) -> None:
    """Its golden request waits longer than it may, or is refused, while it answers others."""
    folder = tmp_path / "repository" / "slow"
    write_slow_model(folder, queue=8)
    case = GoldenCase("slow", (Tensor.from_json(TENSOR),), (Tensor.from_json({**TENSOR, "name": "Y"}),))
    write_golden(folder / "1", [case])
    lines: list[str] = []
    options = ServeOptions(
        folder.parent,
        **FREE,
        health_period=0.2,
        health_timeout=0.5,
        progress=lambda line, *_: lines.append(line),
    )
    with Watchdog(options) as watchdog:
        health = Endpoint(watchdog.running.health)
        assert health.get("/ready").ok
        replies = [ask_many(watchdog.running, count) for count in (6, 12, 6)]
        assert sum(reply.ok for one in replies for reply in one) > 10
        busy = re.search(r'outcome="busy"} (\d+)', health.get("/metrics").body.decode())
        assert busy
        assert int(busy[1]) > 2
        until(lambda: health.get("/ready").ok)
    assert lines == []
