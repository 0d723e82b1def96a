"""Parity compares a stage's answers with each other, too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertmp import parity
from bertmp.export.bundle import Bundle, Manifest
from bertmp.export.parity.gates import override
from bertmp.export.parity.reading import read_inputs
from tests.export.inconsistent_graphs import Fault, add_length, centre_batch, roll_large_batches
from tests.export.parity_bundles import LOW, mix_up


def test_every_stage_that_runs_is_compared_with_itself(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    for stage in result.stages[:5]:
        found = stage.consistency
        assert found is not None
        assert found.passed, found.sentence()
        assert {one.shape for one in found.results} >= {"32x16", "5x40", "1x40"}
    exact, low = (result.stage(name).consistency for name in ("torch-fp32", "onnx-fp16"))
    assert exact is not None
    assert low is not None
    assert max(one.bound for one in exact.results) < max(one.bound for one in low.results)
    assert [gate.stage for gate in result.gates if gate.name == "consistent"] == [
        "torch-fp32",
        "onnx-fp32",
        *LOW,
    ]
    page = " ".join((result.folder / "report.html").read_text().split())
    assert re.search(r"permuted rows</td><td>\d+x\d+, the worst of 5</td>", page)


def test_a_served_stage_gets_the_profiles_of_the_bundles_engine(bundle: Path, labelled: Path) -> None:
    assert read_inputs(Bundle.open(bundle), labelled).inputs.profiles == ()
    texts = ["1x1:8x16:32x16", "1x17:8x40:32x40"]
    record = {"inputs": (), "outputs": (), "tools": (), "settings": {}, "seconds": 0.0}
    Bundle.open(bundle).record("build-engine", results={"profiles": texts}, **record)
    assert [str(one) for one in read_inputs(Bundle.open(bundle), labelled).inputs.profiles] == texts


@pytest.mark.parametrize(
    ("fault", "check"),
    [(roll_large_batches, "permuted_rows"), (centre_batch, "single_row"), (add_length, "padding")],
)
def test_a_graph_that_contradicts_itself_fails(
    bundle: Path, labelled: Path, fault: Fault, check: str
) -> None:
    mix_up(bundle, fault)
    result = parity(bundle, labelled)
    failed = [gate for gate in result.failed_gates if gate.name == "consistent"]
    assert [(gate.stage, gate.measured) for gate in failed] == [(stage, False) for stage in LOW]
    assert all(f"{check} at " in gate.sentence for gate in failed)
    assert Manifest.load(bundle).stages["parity"].results["stages"]["onnx-fp16"]["consistent"] is False
    assert result.verdict_on(result.stage("onnx-fp16")) == "failed"
    off = parity(bundle, labelled, gates=override({stage: {"consistent": False} for stage in LOW}, ""))
    assert "consistent" not in {gate.name for gate in off.failed_gates}


def test_the_command_names_a_contradiction_that_no_compared_answer_shows(
    bundle: Path, labelled: Path, run_bertmp: Callable[..., Any]
) -> None:
    mix_up(bundle, roll_large_batches)
    done = run_bertmp("parity", bundle, "--data", labelled)
    assert done.returncode == 1, done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed ")]
    assert len(failed) == 3
    assert failed[0].startswith("failed onnx-fp16 consistent: it contradicts itself: identical_rows at 32x16")
    assert failed[1].startswith("failed onnx-fp16 as_planned: ")
    assert failed[2].startswith(f"failed {LOW[1]} consistent: it contradicts itself: identical_rows at 32x16")
    written = json.loads((bundle / "parity" / "report.json").read_text())
    [stage] = [stage for stage in written["stages"] if stage["name"] == "onnx-fp16"]
    broken = {(one["check"], one["shape"]) for one in stage["consistency"]["results"] if not one["passed"]}
    assert ("permuted_rows", "32x16") in broken
    assert 'tr class="broken"' in (bundle / "parity" / "report.html").read_text()
