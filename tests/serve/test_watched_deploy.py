"""Deployments on a watched server: the watchdog repairs nothing that is not broken."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from bertmp import infer, rollback
from bertmp.core.errors import GateFailed
from bertmp.serve.http_request import Endpoint
from bertmp.serve.repository import ModelFolders
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.watchdog import Watchdog
from tests.serve.bundles import altered, deploy
from tests.serve.test_watchdog import FREE, Watched, seconds_until


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.mark.slow
def test_versions_that_are_switched_stay_ready_and_are_not_repaired(
    triton: None, folder: Path, bundle: Path, other_bundle: Path
) -> None:
    lines: list[str] = []
    options = ServeOptions(folder, **FREE, health_period=0.2, progress=lambda line, *_: lines.append(line))
    with Watchdog(options) as watchdog:
        found, server = Watched(watchdog, lines), watchdog.running.http
        seconds_until(found.ready)
        states: list[tuple[int | None, str]] = []
        done = threading.Event()

        def look() -> None:
            health = Endpoint(watchdog.running.health)
            while not done.is_set():
                states.append((health.get("/ready").status, found.why_not()))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            for round in range(4):
                deploy((other_bundle, bundle)[round % 2], "trec", folder, server)
            rollback("trec", folder, server)
        finally:
            done.set()
            looking.join()
        version = infer("trec", ["Who ?"], url=watchdog.running.grpc)[0].version
        assert version == 4
        seconds_until(lambda: found.health.get("/ready").json()["models"]["trec"]["version"] == version)
        models = found.health.get("/ready").json()["models"]
        assert {one["golden"] for one in models.values()} == {"recorded"}
    assert len(states) > 20
    assert [state for state in states if state[0] != 200] == []
    assert lines == []


@pytest.mark.slow
def test_refused_version_leaves_the_server_ready(
    triton: None, folder: Path, bundle: Path, tmp_path: Path
) -> None:
    broken = altered(bundle, tmp_path / "broken", model__onnx=b"no graph")
    with Watchdog(ServeOptions(folder, **FREE, health_period=0.2)) as watchdog:
        server, health = Endpoint(watchdog.running.http), Endpoint(watchdog.running.health)
        with pytest.raises(GateFailed):
            deploy(broken, "trec", folder, watchdog.running.http)
        assert health.get("/ready").ok
        assert server.get("/v2/health/ready").ok


@pytest.mark.slow
def test_model_that_is_unloaded_on_purpose_is_watched_no_longer(triton: None, folder: Path) -> None:
    from bertmp.serve.control import connect

    lines: list[str] = []
    options = ServeOptions(folder, **FREE, health_period=0.2, progress=lambda line, *_: lines.append(line))
    with Watchdog(options) as watchdog:
        found = Watched(watchdog, lines)
        with connect(watchdog.running.http) as server:
            server.unload("trec_encoder")
            server.unload("trec")
            seconds_until(lambda: not found.health.get("/ready").json()["models"])
            assert found.why_not() == "no model has answered yet"
            server.load("trec_encoder")
            server.load("trec")
            seconds_until(found.ready)
    assert sorted(lines) == [
        "'trec' was unloaded: it is watched no longer",
        "'trec_encoder' was unloaded: it is watched no longer",
    ]


@pytest.mark.slow
def test_worker_that_is_killed_during_a_deployment_is_repaired_after_it(triton: None, folder: Path) -> None:
    lines: list[str] = []
    options = ServeOptions(folder, **FREE, health_period=0.2, progress=lambda line, *_: lines.append(line))
    with Watchdog(options) as watchdog:
        found = Watched(watchdog, lines)
        with ModelFolders(folder, "trec").locked():  # as a deployment does
            found.workers("trec")[0].kill()
            seconds_until(lambda: found.said("when the deployment that is under way has ended"))
            assert not found.ready()
            assert not found.said("loaded again")
        seconds_until(found.ready)
        assert found.said("the model is loaded again")
    assert len([line for line in lines if "under way" in line]) == 1
