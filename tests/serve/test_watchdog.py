"""A watched server: what breaks is noticed, told and repaired, and requests succeed afterwards."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bertmp import infer
from bertmp.core.io import read_json, write_json
from bertmp.serve import watchdog as watchdog_module
from bertmp.serve.golden import GOLDEN
from bertmp.serve.http_request import Endpoint
from bertmp.serve.repair import WITHIN_SECONDS, RepairBudget
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.watchdog import Watchdog

FREE: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "health_port": 0}


class Watched:
    """A watched server and its log."""

    def __init__(self, watchdog: Watchdog, lines: list[str]) -> None:
        self.watchdog, self.lines = watchdog, lines
        self.health = Endpoint(watchdog.running.health)

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(self.watchdog.running.pid)

    def workers(self, model: str) -> list[psutil.Process]:
        stubs = [one for one in self.server.children() if one.status() != psutil.STATUS_ZOMBIE]
        return [one for one in stubs if one.cmdline()[8].removeprefix(f"{model}_")[0].isdecimal()]

    def ready(self) -> bool:
        return self.health.get("/ready").ok

    def why_not(self) -> str:
        return str(self.health.get("/ready").json().get("reason", ""))

    def said(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


def seconds_until(condition: Callable[[], object], limit: float = 30) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit, "the condition never became true"
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(repository, tmp_path_factory.mktemp("watched") / "repository"))


@pytest.fixture(scope="module")
def watched(triton: None, folder: Path) -> Iterator[Watched]:
    """One server for all faults: each test leaves it repaired."""
    lines: list[str] = []
    options = ServeOptions(folder, **FREE, max_repairs=1000, progress=lambda line, *_: lines.append(line))
    with Watchdog(options) as watchdog:
        yield Watched(watchdog, lines)


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest) -> None:
    if "watched" in request.fixturenames:
        server: Watched = request.getfixturevalue("watched")
        seconds_until(server.ready)
        server.lines.clear()
        server.watchdog._budget.done.clear()


def answers(watched: Watched, protocol: str = "http") -> None:
    """Twenty requests in a row, so that each worker gets some, succeed."""
    running = watched.watchdog.running
    for _ in range(20):
        url = running.http if protocol == "http" else running.grpc
        assert infer("trec", ["Who wrote Hamlet ?"], protocol=protocol, url=url)[0].version == 1


def test_ready_of_a_sound_server_names_its_models(watched: Watched) -> None:
    reply = watched.health.get("/ready")
    assert reply.status == 200
    body = reply.json()
    assert body["ready"] is True
    assert {name: one["golden"] for name, one in body["models"].items()} == {
        "trec": "recorded",
        "trec_encoder": "recorded",
    }
    assert watched.health.get("/live").json()["live"] is True
    assert watched.health.get("/other").status == 404


@pytest.mark.parametrize("model", ["trec", "trec_encoder"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_stopped_worker_is_repaired_within_five_seconds(
    watched: Watched, model: str, number: signal.Signals
) -> None:
    victim = watched.workers(model)[0]
    victim.send_signal(number)
    noticed = seconds_until(lambda: not watched.ready())
    assert str(victim.pid) in watched.why_not()
    repaired = seconds_until(watched.ready)
    answers(watched)
    assert noticed + repaired < 5
    word = "killed" if number == signal.SIGKILL else "stopped"
    assert watched.said("watchdog", f"worker {victim.pid} of '{model}' was {word}")
    assert watched.said("watchdog", f"'{model}' answers again")


STUCK_ON_REQUEST = """
import ctypes
before = read_text

def read_text(value, *rest):
    if value == b"the worker that reads this is stuck":
        ctypes.CDLL(None).pause()  # native code that never returns
    return before(value, *rest)
"""


@pytest.mark.slow
def test_worker_that_is_stuck_while_another_answers_is_replaced(
    triton: None, repository: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    with (copy / "trec" / "1" / "model.py").open("a") as code:
        code.write(STUCK_ON_REQUEST)
    lines: list[str] = []
    options = ServeOptions(
        copy, **FREE, health_period=0.5, worker_timeout=2.0, progress=lambda line, *_: lines.append(line)
    )
    with ThreadPoolExecutor(1) as pool, Watchdog(options) as watchdog:
        found = Watched(watchdog, lines)
        before = {worker.pid for worker in found.workers("trec")}
        assert len(before) > 1, "another worker answers the golden requests"
        assert {worker.name() for worker in found.workers("trec")} == {"idle"}
        tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]}
        request = {"inputs": [{**tensor, "data": ["the worker that reads this is stuck"]}]}
        asked = time.monotonic()
        server = Endpoint(watchdog.running.http)
        unlucky = pool.submit(server.post, "/v2/models/trec/infer", request, timeout=60)
        answers(found)
        seconds_until(lambda: not found.ready())
        assert time.monotonic() - asked > options.worker_timeout, "until then it may be slow only"
        assert seconds_until(found.ready) < 8
        (said,) = {line for line in lines if "was stuck" in line}
        victim = int(said.split("worker ")[1].split()[0])
        assert victim in before
        assert victim not in {worker.pid for worker in found.workers("trec")}
        assert not unlucky.result(60).ok
        answers(found)
        assert found.said("watchdog", "'trec' answers again")
        assert not found.said("watchdog", "the server is started again")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_stopped_server_is_started_again_within_ten_seconds(
    watched: Watched, number: signal.Signals
) -> None:
    before = watched.server.pid
    watched.server.send_signal(number)
    noticed = seconds_until(lambda: not watched.ready())
    assert watched.health.get("/live").ok
    repaired = seconds_until(watched.ready)
    assert watched.server.pid != before
    for protocol in ("http", "grpc"):
        answers(watched, protocol)
    assert noticed + repaired < 10
    assert watched.said("watchdog", "the server is started again")


def test_server_that_a_malformed_request_ended_is_started_again(watched: Watched) -> None:
    """Triton 2.51 aborts on a shape that no memory holds; later ones may refuse it."""
    before = watched.server.pid
    names = ("input_ids", "attention_mask", "token_type_ids")
    huge = [{"name": one, "datatype": "INT64", "shape": [1, 10_000_000_000], "data": [1]} for one in names]
    connection = http.client.HTTPConnection(watched.watchdog.running.http, timeout=10)
    connection.request("POST", "/v2/models/trec_encoder/infer", json.dumps({"inputs": huge}))
    if watched.watchdog.running.version == "2.51.0":
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.getresponse()
        started = time.monotonic()
        seconds_until(lambda: watched.watchdog.running.pid != before)
        seconds_until(watched.ready)
        assert time.monotonic() - started < 10
    else:
        assert connection.getresponse().status == 400
    connection.close()
    answers(watched)


@pytest.mark.slow
def test_server_that_a_classification_of_text_ended_is_started_again(watched: Watched) -> None:
    """Triton before 25.07 divides by the size of a string; later ones refuse the request."""
    before = watched.server.pid
    text = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}
    body = {"inputs": [text], "outputs": [{"name": "LABEL", "parameters": {"classification": 1}}]}
    connection = http.client.HTTPConnection(watched.watchdog.running.http, timeout=10)
    connection.request("POST", "/v2/models/trec/infer", json.dumps(body))
    if watched.watchdog.running.version == "2.51.0":
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.getresponse()
        seconds_until(lambda: watched.watchdog.running.pid != before)
        seconds_until(watched.ready)
        assert watched.said("SIGFPE")
    else:
        assert connection.getresponse().status == 400
    connection.close()
    answers(watched)


def test_metrics_count_requests_and_repairs(watched: Watched) -> None:
    watched.workers("trec")[0].kill()
    seconds_until(lambda: watched.said("answers again"))
    text = watched.health.get("/metrics").body.decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["bertmp_ready"] == "1"
    assert float(values['bertmp_golden_requests_total{model="trec",outcome="right"}']) >= 1
    assert float(values['bertmp_repairs_total{target="trec"}']) >= 1


@pytest.mark.slow
def test_wrong_answers_that_loading_again_does_not_help_end_the_command(
    triton: None, repository: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    path = copy / "trec" / "1" / GOLDEN
    golden = read_json(path)
    expected = next(one for one in golden["cases"][0]["outputs"] if one["name"] == "PROBABILITIES")
    expected["data"] = [1 - value for value in expected["data"]]
    write_json(path, golden)
    lines: list[str] = []
    options = ServeOptions(
        copy, **FREE, max_repairs=2, health_period=0.5, progress=lambda line, *_: lines.append(line)
    )
    with Watchdog(options) as watchdog:
        found = Watched(watchdog, lines)
        assert not found.ready()
        assert "'trec': PROBABILITIES is " in found.why_not()
        assert watchdog.has_ended(60)
        assert "2 repairs within 60 seconds did not help" in str(watchdog.failure())
    assert watchdog.failure().exit_code == 1


FORGETFUL = '''
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """Echoes a number. Asked for 13, it is wrong until it is loaded again; asked for 14, it hangs."""

    def initialize(self, args):
        self.wrong = 0.0

    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            if (value == 13).any():
                self.wrong = 5.0
            if (value == 14).any():
                time.sleep(3600)
            answer = pb_utils.Tensor("Y", value + np.float32(self.wrong))
            responses.append(pb_utils.InferenceResponse([answer]))
        return responses
'''

FORGETFUL_CONFIG = """
name: "forgetful"
backend: "python"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: 1 }
output { name: "Y" data_type: TYPE_FP32 dims: 1 }
instance_group { count: 1 kind: KIND_CPU }
"""


@pytest.mark.slow
@pytest.mark.parametrize(("unlucky", "said"), [(13.0, "Y is 7, not 2"), (14.0, "no answer within 1 s")])
def test_wrong_and_missing_answers_that_loading_again_helps_are_repaired(
    triton: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlucky: float, said: str
) -> None:
    monkeypatch.setattr(watchdog_module, "REPLACED_SECONDS", 1.0)
    folder = tmp_path / "repository" / "forgetful"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(FORGETFUL)
    (folder / "config.pbtxt").write_text(FORGETFUL_CONFIG)
    tensor = {"datatype": "FP32", "shape": [1, 1], "data": [2.0]}
    case = {"model": "forgetful", "inputs": [{"name": "X", **tensor}], "outputs": [{"name": "Y", **tensor}]}
    write_json(folder / "1" / GOLDEN, {"format": 1, "cases": [case]})
    lines: list[str] = []
    options = ServeOptions(
        folder.parent,
        **FREE,
        health_period=0.5,
        health_timeout=1.0,
        progress=lambda line, *_: lines.append(line),
    )
    with Watchdog(options) as watchdog:
        found = Watched(watchdog, lines)
        assert found.ready(), found.why_not()
        (before,) = found.workers("forgetful")
        request = {"inputs": [{"name": "X", **tensor, "data": [unlucky]}]}
        Endpoint(watchdog.running.http).post("/v2/models/forgetful/infer", request, timeout=0.5)
        seconds_until(lambda: not found.ready())
        assert said in found.why_not()
        assert seconds_until(found.ready) < 8
        assert found.said("watchdog", "'forgetful' answers again")
        seconds_until(lambda: before.pid not in {worker.pid for worker in found.workers("forgetful")})


@pytest.mark.slow
def test_without_recorded_answers_the_first_one_counts_and_the_log_says_so(
    triton: None, repository: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    (copy / "trec" / "1" / GOLDEN).unlink()
    lines: list[str] = []
    with Watchdog(ServeOptions(copy, **FREE, progress=lambda line, *_: lines.append(line))) as watchdog:
        found = Watched(watchdog, lines)
        models = found.health.get("/ready").json()["models"]
        assert {name: one["golden"] for name, one in models.items()} == {
            "trec": "first",
            "trec_encoder": "first",
        }
        assert found.ready()
    assert found.said("'trec' has no recorded answers")


@pytest.mark.slow
def test_repairs_by_option_off_are_told_only(triton: None, repository: Path) -> None:
    lines: list[str] = []
    options = ServeOptions(
        repository, **FREE, max_repairs=0, health_period=0.5, progress=lambda line, *_: lines.append(line)
    )
    with Watchdog(options) as watchdog:
        found = Watched(watchdog, lines)
        found.workers("trec")[0].kill()
        seconds_until(lambda: found.said("was killed; nothing is repaired"))
        assert not found.ready()
        os.kill(watchdog.running.pid, signal.SIGKILL)
        assert watchdog.has_ended(60)
        assert str(watchdog.failure()).startswith("Triton ended by itself with code -9")


def test_repair_budget_waits_longer_each_time_and_ends() -> None:
    budget = RepairBudget(9)
    assert [budget.take("a", 0.0) for _ in range(7)] == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert budget.take("b", 0.0) == 0.0
    assert [budget.take("b", 1.0), budget.take("a", 1.0)] == [0.25, None]
    budget.give_back()
    assert budget.take("b", 2.0) == 0.25
    assert budget.take("a", 2.0) is None
    assert budget.take("a", WITHIN_SECONDS + 3) == 0.0
