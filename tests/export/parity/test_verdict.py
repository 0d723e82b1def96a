"""The verdict: passed, failed, or incomplete with what was not checked, and what `deploy` makes of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bertmp import deploy, parity
from bertmp.core.errors import GateFailed, InputError
from bertmp.core.io import sha256_file
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, NETWORK, Bundle, Manifest
from bertmp.export.parity.stage import ParityInputs, Skipped, StageInterrupted, StageOutput
from tests.export.parity_bundles import Served, damage


class Absent:
    """A served model whose server does not answer."""

    name = "triton"

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        return Skipped("no Triton server answers over grpc at localhost:1")


class Dying:
    """A served model whose server dies after ten texts."""

    name = "triton"

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        advance(10)
        raise StageInterrupted("the server stopped answering", "localhost:8001", "start it again")


def without_checkpoint(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    moved = replace(manifest.stages["export"], settings={"checkpoint": str(bundle / "gone")})
    manifest.with_stage("export", moved).save(bundle)


def with_engine(bundle: Path, builder: str) -> None:
    """Adds an engine that cannot run here, as `build-engine` records it."""
    (bundle / ENGINE).parent.mkdir()
    (bundle / ENGINE).write_bytes(b"engine")
    network = {
        "builder": builder,
        "builder_version": "11.1.0",
        "compute_capability": ["8.9"],
        "weights": "full",
        "profiles": ["1x1:8x40:32x40"],
        "version_compatible": False,
        "cuda": "13",
        "driver": "",
        "engine_bytes": 6,
        "engine_sha256": sha256_file(bundle / ENGINE),
        "format": 2,
        "layers": [],
        "verification": {"verified": True, "counts": {}, "summary": {}},
    }
    (bundle / NETWORK).write_text(json.dumps(network))
    Bundle.open(bundle).record(
        BUILD_ENGINE, inputs=["model.fp16.onnx"], outputs=[ENGINE, NETWORK], tools={builder: "11.1.0"},
        settings={}, results={**network, "builder": builder}, seconds=1.0,
    )  # fmt: skip


class TestIncomplete:
    def test_a_server_that_does_not_answer(self, bundle: Path, labelled: Path) -> None:
        result = parity(bundle, labelled, extra_stages=[Absent()])
        assert result.verdict == "incomplete"
        assert not result.failed_gates
        assert [one.sentence() for one in result.unchecked] == [
            "triton was not checked: no Triton server answers over grpc at localhost:1"
        ]

    @pytest.mark.parametrize(("builder", "verdict"), [("tensorrt", "incomplete"), ("tensorrt-rtx", "passed")])
    def test_an_engine_that_did_not_run(
        self, bundle: Path, labelled: Path, builder: str, verdict: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TensorRT-RTX's engines are never deployed, so nothing waits for them."""
        from bertmp.export.parity import bundle_stages

        with_engine(bundle, builder)
        monkeypatch.setattr(bundle_stages, "probe", lambda name: "not installed")
        monkeypatch.setattr(bundle_stages, "why_not", lambda name: "no NVIDIA GPU")
        result = parity(bundle, labelled)
        assert result.verdict == verdict

    def test_a_required_stage(self, bundle: Path, labelled: Path) -> None:
        assert parity(bundle, labelled).verdict == "passed"
        result = parity(bundle, labelled, require=["engine", "triton"])
        assert result.verdict == "incomplete"
        assert {one.stage: one.reason for one in result.unchecked} == {
            "engine": "no engine was built",
            "triton": "no --server was given",
        }

    def test_what_is_allowed_is_recorded_and_does_not_count(self, bundle: Path, labelled: Path) -> None:
        without_checkpoint(bundle)
        result = parity(bundle, labelled, allow_incomplete=["torch-fp32"])
        assert result.verdict == "passed"
        assert [one.allowed for one in result.unchecked] == [True]
        recorded = Manifest.load(bundle).stages["parity"].results
        assert recorded["unchecked"][0]["stage"] == "torch-fp32"

    def test_failed_outranks_incomplete(self, bundle: Path, labelled: Path) -> None:
        damage(bundle, 0.5)
        assert parity(bundle, labelled, extra_stages=[Absent()]).verdict == "failed"

    def test_a_server_that_dies_midway_ends_the_run_after_the_report(
        self, bundle: Path, labelled: Path
    ) -> None:
        with pytest.raises(InputError, match="the server stopped answering"):
            parity(bundle, labelled, extra_stages=[Dying()])
        report = json.loads((bundle / "parity/report.json").read_text())
        assert report["verdict"] == "failed"
        stages = {stage["name"]: stage for stage in report["stages"]}
        assert stages["triton"]["reason"] == "the server stopped answering after 10 of 60 texts"
        assert stages["onnx-fp16"]["status"] == "run"


class TestCommand:
    def test_it_says_so_first_and_exits_with_5(
        self, bundle: Path, labelled: Path, run_bertmp: Callable[..., Any]
    ) -> None:
        options = ("--server", "localhost:1", "--model", "x")
        done = run_bertmp("parity", bundle, "--data", labelled, *options)
        assert done.returncode == 5
        first = done.stdout.splitlines()[0]
        assert first.startswith("parity incomplete: ")
        assert "triton was not checked: no Triton server answers" in done.stdout
        page = " ".join((bundle / "parity/report.html").read_text().split())
        assert page.index("triton was not checked") < page.index("<main")
        done = run_bertmp(
            "parity", bundle, "--data", labelled, *options, "--allow-incomplete", "triton", "--json"
        )
        assert done.returncode == 0
        assert json.loads(done.stdout)["verdict"] == "passed"

    def test_for_ci_systems_it_is_a_failure(self, bundle: Path, labelled: Path) -> None:
        parity(bundle, labelled, extra_stages=[Absent()])
        root = ElementTree.parse(bundle / "parity/junit.xml").getroot()
        (case,) = [one for one in root.iter("testcase") if one.get("classname") == "parity.verdict"]
        assert case.get("name") == "triton"
        assert case[0].get("type") == "incomplete"


class TestDeploy:
    def test_an_incomplete_bundle_is_refused_unless_that_is_allowed(
        self, bundle: Path, labelled: Path, tmp_path: Path
    ) -> None:
        without_checkpoint(bundle)
        parity(bundle, labelled)
        with pytest.raises(GateFailed, match=r"parity is incomplete \(torch-fp32: "):
            deploy(bundle, "m", tmp_path / "repository")
        assert not list(tmp_path.glob("repository/*/1"))
        result = deploy(bundle, "m", tmp_path / "repository", allow_incomplete=True)
        assert result.parity == "incomplete"

    def test_served_and_in_process_stages_pass_together(
        self, bundle: Path, labelled: Path, tmp_path: Path
    ) -> None:
        parity(bundle, labelled, extra_stages=[Served(bundle / "model.onnx")])
        assert deploy(bundle, "m", tmp_path / "repository").parity == "passed"
