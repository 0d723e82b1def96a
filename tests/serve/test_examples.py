"""The files of `examples/` for other hosts: what a cluster or a container engine is not needed to check."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.serve.conftest import Served

EXAMPLES = Path(__file__).parents[2] / "examples"
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))


def resources() -> list[dict[str, Any]]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def triton() -> dict[str, Any]:
    (found,) = (one for one in resources() if one["kind"] == "Deployment")
    return dict(found["spec"]["template"]["spec"]["containers"][0])


@pytest.mark.parametrize("version", ["1.28", "1.31", "1.34"])
def test_the_manifests_are_valid(version: str) -> None:
    kinds = {one["kind"] for one in resources()}
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy", "ConfigMap"} <= kinds
    for one in resources():
        kubernetes_validate.validate(one, version, strict=True)


def test_what_is_not_valid_is_found() -> None:
    (deployment,) = (one for one in resources() if one["kind"] == "Deployment")
    deployment["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.31", strict=True)


def test_every_mount_has_its_volume_and_every_selector_its_pods() -> None:
    (deployment,) = (one for one in resources() if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]
    volumes = {one["name"] for one in pod["spec"]["volumes"]}
    assert {one["name"] for one in triton()["volumeMounts"]} == volumes
    for one in resources():
        spec = one.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector", {}))
        for label, value in selector.get("matchLabels", selector).items():
            assert pod["metadata"]["labels"][label] == value, one["kind"]


def test_compose_runs_the_same_container_with_the_same_options() -> None:
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))
    service = compose["services"]["triton"]
    assert service["image"] == triton()["image"]

    def options(words: list[str]) -> set[str]:
        return {word.partition("=")[0] for word in words}

    assert options(service["command"]) == options(triton()["args"])
    assert any("proxy/nginx.conf:" in mount for mount in compose["services"]["proxy"]["volumes"])
    assert (EXAMPLES / compose["configs"]["golden_request"]["file"]).is_file()


def probe(repository: Path, address: str) -> tuple[int, str]:
    """What the containers' probe says; `-I` keeps what this project installs out of its sight."""
    script = EXAMPLES / "kubernetes" / "golden_request.py"
    command = [sys.executable, "-I", script, "--repository", repository, "--url", f"http://{address}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.returncode, done.stderr


def test_the_probe_asks_every_model_its_golden_request(served: Served, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(served.repository / "trec", repository / "trec")
    assert probe(repository, served.running.http) == (0, "")
    golden = repository / "trec" / "1" / "golden.json"
    recorded = json.loads(golden.read_text())
    assert {case["model"] for case in recorded["cases"]} == {"trec", "trec_encoder"}
    recorded["cases"][1]["outputs"][0]["data"][0] += 10.0
    golden.write_text(json.dumps(recorded))
    code, reason = probe(repository, served.running.http)
    assert code == 1
    assert reason.startswith("trec_encoder: another answer in logits")
    code, reason = probe(repository, "127.0.0.1:9")
    assert (code, reason.startswith("trec: ")) == (1, True)
    golden.unlink()
    assert probe(repository, served.running.http)[0] == 1
