"""Deploying into a running server and rolling back on it, while clients keep clients."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from bertmp import models, rollback
from bertmp.core.errors import BertmpError, GateFailed, InputError
from bertmp.export import bundle as names
from bertmp.export.engine.compatibility import release_of_server
from bertmp.serve import version_code
from bertmp.serve.client import Client
from bertmp.serve.control import connect
from bertmp.serve.repository import numbered
from bertmp.serve.retry import NO_RETRIES
from bertmp.serve.serving_options import Protocol
from tests.export.inconsistent_graphs import (
    Fault,
    add_length,
    centre_batch,
    roll_large_batches,
    roll_rows,
)
from tests.serve.bundles import altered, answer_in_process, deploy, with_stage
from tests.serve.conftest import Served

TEXTS = ["Who wrote Hamlet ?", "Where is the highest mountain of the world ?"]


class ContinuousClients:
    """Clients that ask a model without a pause, each answer checked against its own version."""

    def __init__(self, served: Served, model: str, expected: dict[int, np.ndarray]) -> None:
        self.seen: list[int] = []
        self.errors: list[str] = []
        self._served, self._model, self._expected = served, model, expected
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._ask, args=(p,)) for p in ("grpc", "http", "grpc")]

    def __enter__(self) -> ContinuousClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, protocol: str) -> None:
        with Client(self._served.url(protocol), protocol) as client:
            while not self._stop.is_set():
                self._ask_once(client)

    def _ask_once(self, client: Client) -> None:
        try:
            found = client.classify(self._model, TEXTS)
        except BertmpError as error:
            self.errors.append(str(error))
            return
        version = found.versions[0]
        if not np.allclose(found.probabilities, self._expected[version], atol=1e-5):
            self.errors.append(f"version {version} gave another's answer")
        with self._changed:
            self.seen.append(version)
            self._changed.notify_all()

    def wait_for(self, version: int) -> None:
        """Returns when a request that begins from now on was answered by `version`."""
        with self._changed:
            start = len(self.seen)
            assert self._changed.wait_for(lambda: version in self.seen[start:], 60)


def test_deploy_and_rollback_under_load_lose_no_request(
    served: Served, bundle: Path, other_bundle: Path
) -> None:
    url = served.running.grpc
    assert deploy(bundle, "swapped", served.repository, url).server == f"grpc://{url}"
    expected = {
        number: answer_in_process(source, TEXTS)[1] for number, source in ((1, bundle), (2, other_bundle))
    }
    with ContinuousClients(served, "swapped", expected) as clients:
        clients.wait_for(1)
        assert deploy(other_bundle, "swapped", served.repository, served.running.http).version == 2
        clients.wait_for(2)
        assert rollback("swapped", served.repository, url).version == 1
        clients.wait_for(1)
    assert clients.errors == []
    assert [
        (entry.version, entry.state) for entry in models(served.repository) if entry.name == "swapped"
    ] == [
        (1, "live"),
        (2, "retired"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_that_begin_while_versions_change_get_answers(
    served: Served, bundle: Path, other_bundle: Path, protocol: Protocol
) -> None:
    """Each learns the labels with its first answer, and nothing is sent twice.

    Triton completes an output as a classification only as long as the version that answered is the live one.
    """
    name = f"changing_{protocol}"
    deploy(bundle, name, served.repository, served.running.grpc)
    stop, errors, versions = threading.Event(), list[str](), set[int]()

    def begin() -> None:
        while not stop.is_set():
            with Client(served.url(protocol), protocol, retry=NO_RETRIES) as client:
                try:
                    versions.update(answer.version for answer in client.ask(name, TEXTS))
                except BertmpError as error:
                    errors.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(3):
            deploy((other_bundle, bundle)[number % 2], name, served.repository, served.running.grpc)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, "\n".join(errors)
    assert versions == {1, 2, 3, 4}


def test_deploy_of_a_broken_version_keeps_the_live_one(served: Served, bundle: Path, tmp_path: Path) -> None:
    url = served.running.grpc
    broken = altered(bundle, tmp_path / "broken", model__onnx=b"no graph")
    deploy(bundle, "kept", served.repository, url)
    with ContinuousClients(served, "kept", {1: answer_in_process(bundle, TEXTS)[1]}) as clients:
        with pytest.raises(GateFailed, match="version 2 of 'kept' is refused"):
            deploy(broken, "kept", served.repository, url)
        clients.wait_for(1)
    assert clients.errors == []
    assert numbered(served.repository / "kept") == numbered(served.repository / "kept_encoder") == [1]
    found = {entry.version: entry for entry in models(served.repository) if entry.name == "kept"}
    assert (found[1].state, found[2].state) == ("live", "refused")
    assert found[2].note


def test_deploy_tells_that_the_version_is_consistent(served: Served, bundle: Path) -> None:
    canary = deploy(bundle, "consistent", served.repository, served.running.http).canary
    assert canary is not None
    found = canary.consistency
    assert found.passed, found.sentence()
    assert {result.shape for result in found.results} >= {"32x16", "5x64", "1x64", "5 texts", "32 texts"}
    assert found.difference < 1e-4


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (roll_rows, "permuted_rows at "),
        pytest.param(roll_large_batches, "permuted_rows at 32x16", marks=pytest.mark.slow),
        pytest.param(centre_batch, "single_row at ", marks=pytest.mark.slow),
        pytest.param(add_length, "padding at 1x", marks=pytest.mark.slow),
    ],
)
def test_deploy_of_a_version_that_contradicts_itself_keeps_the_live_one(
    served: Served, bundle: Path, tmp_path: Path, fault: Fault, check: str
) -> None:
    name, url = f"kept_from_{fault.__name__}", served.running.grpc
    model = onnx.load(bundle / names.FP32_GRAPH)
    fault(model)
    mixed = altered(bundle, tmp_path / "mixed", model__onnx=model.SerializeToString())
    deploy(bundle, name, served.repository, url)
    with ContinuousClients(served, name, {1: answer_in_process(bundle, TEXTS)[1]}) as clients:
        with pytest.raises(GateFailed, match="is refused: it contradicts itself") as refused:
            deploy(mixed, name, served.repository, url)
        clients.wait_for(1)
    assert check in str(refused.value)
    assert clients.errors == []
    assert set(clients.seen) == {1}
    assert numbered(served.repository / name) == numbered(served.repository / f"{name}_encoder") == [1]
    found = {entry.version: entry for entry in models(served.repository) if entry.name == name}
    assert (found[1].state, found[2].state) == ("live", "refused")
    assert check in found[2].note


@pytest.mark.slow
def test_deploy_of_a_text_model_that_mixes_up_its_texts_keeps_the_live_one(
    served: Served, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(bundle, "kept_texts", served.repository, served.running.grpc)
    changed = Path(shutil.copytree(version_code.TEXT_CODE, tmp_path / "code"))
    code = (changed / "model.py").read_text(encoding="utf-8")
    mixing = code.replace("zip(asked.rows, asked.scores)", "zip(asked.rows, asked.scores[::-1])")
    assert mixing != code
    (changed / "model.py").write_text(mixing, encoding="utf-8")
    monkeypatch.setattr(version_code, "TEXT_CODE", changed)
    with pytest.raises(GateFailed, match=r"contradicts itself.*permuted_rows at (5|32) texts"):
        deploy(bundle, "kept_texts", served.repository, served.running.grpc)
    with Client(served.running.grpc) as client:
        found = client.classify("kept_texts", TEXTS)
    assert found.versions == [1, 1]
    np.testing.assert_allclose(found.probabilities, answer_in_process(bundle, TEXTS)[1], atol=1e-5)
    assert numbered(served.repository / "kept_texts") == [1]


def test_deploy_of_a_broken_first_version_leaves_no_model(
    served: Served, bundle: Path, tmp_path: Path
) -> None:
    broken = altered(bundle, tmp_path / "broken", model__onnx=b"no graph")
    with pytest.raises(GateFailed):
        deploy(broken, "never", served.repository, served.running.http)
    with Client(served.running.grpc) as client, pytest.raises(InputError, match=r"no model|not ready"):
        client.classify("never", TEXTS)
    assert numbered(served.repository / "never") == []


def test_deploy_to_a_server_of_another_repository_is_refused(
    served: Served, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(GateFailed, match="is refused"):
        deploy(bundle, "elsewhere", tmp_path, served.running.grpc)
    assert numbered(tmp_path / "elsewhere") == []


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_deploy_to_a_cpu_server_accepts_any_engine(
    served: Served, bundle: Path, tmp_path: Path, protocol: str
) -> None:
    """It does not load the engine, so that an engine of another release is no reason to refuse."""
    built = altered(bundle, tmp_path / "built")
    (built / "engine").mkdir()
    url = served.url(protocol)
    with connect(url) as server:
        release = release_of_server(server.server_version())
    assert release is not None
    for content in (b"an engine", b"another"):
        (built / names.ENGINE).write_bytes(content)
        results = {"builder": "tensorrt", "builder_version": "10.99.0.1", "profiles": ["1x1:8x16:32x64"]}
        with_stage(built, names.BUILD_ENGINE, results, [names.ENGINE])
        assert deploy(built, f"cpu_{protocol}", served.repository, url).new


def test_deploy_to_a_server_loads_a_version_deployed_before(served: Served, bundle: Path) -> None:
    """Deployed without a server first: naming the server afterwards brings it into service."""
    deploy(bundle, "later", served.repository)
    result = deploy(bundle, "later", served.repository, served.running.grpc)
    assert (result.version, result.new) == (1, False)
    with Client(served.running.grpc) as client:
        assert client.classify("later", TEXTS).versions == [1, 1]
