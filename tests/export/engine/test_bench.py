"""`bench --engine`: the engine's answers are compared with each other. ONNX Runtime stands in for the GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from bertmp.cli.engine import bench_engine
from bertmp.data.readers import Columns
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, FP16_GRAPH, NETWORK, Bundle
from bertmp.export.engine import bench
from bertmp.export.engine.engine_options import default_profiles
from tests.export.engine_graphs import POSITIONS, save_bundle
from tests.export.inconsistent_graphs import Fault, add_length, roll_large_batches


class GraphAsEngine:
    """The bundle's FP16 graph in ONNX Runtime with an engine's profiles: whatever no profile holds fails."""

    inputs = ("input_ids", "attention_mask", "token_type_ids")
    profiles = default_profiles(POSITIONS, 32)
    device = SimpleNamespace(name="no GPU")

    def __init__(self, folder: Path) -> None:
        graph = folder.parent / FP16_GRAPH
        self.file = SimpleNamespace(path=folder, builder="graph", builder_version="1")
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shape = batch["input_ids"].shape
        assert any(profile.holds(shape) for profile in self.profiles), shape
        return {"logits": self._session.run(["logits"], batch)[0]}

    def prepare(self, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        return {name: np.ones(shape, np.int64) for name in self.inputs}

    launch = __call__

    def synchronize(self) -> None:
        pass


def bundle_with(folder: Path, fault: Fault | None) -> Path:
    """A bundle whose graph has the fault, and an engine stage that is only there to be found."""
    bundle = save_bundle(folder)
    if fault is not None:
        model = onnx.load(bundle / FP16_GRAPH)
        fault(model)
        onnx.save(model, bundle / FP16_GRAPH)
    (bundle / ENGINE).parent.mkdir()
    for name in (ENGINE, NETWORK):
        (bundle / name).write_text("{}")
    plain = {"tools": (), "settings": {}, "results": {}, "seconds": 0.0}
    Bundle.open(bundle).record(BUILD_ENGINE, inputs=[FP16_GRAPH], outputs=[ENGINE, NETWORK], **plain)
    return bundle


@pytest.mark.parametrize(
    ("fault", "broken"),
    [(None, set()), (roll_large_batches, {"32x1", "32x16", "32x17", "32x32", "32x33", "32x64"})],
)
def test_bench_engine_compares_answers_at_every_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None, broken: set[str]
) -> None:
    monkeypatch.setattr(bench, "load_engine", GraphAsEngine)
    result = bench_engine(bundle_with(tmp_path / "bundle", fault), None, 0.01, Columns())
    found = json.loads(json.dumps(result.value))["consistency"]
    assert {one["shape"] for one in found["results"] if not one["passed"]} == broken
    assert {one["shape"] for one in found["results"]} >= {"8x16", "32x16", "32x33", "1x64", "8x64", "32x64"}
    assert result.exit_code == int(fault is not None)


def test_bench_engine_prints_the_contradiction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    monkeypatch.setattr(bench, "load_engine", GraphAsEngine)
    result = bench_engine(bundle_with(tmp_path / "bundle", add_length), None, 0.01, Columns())
    result.text(Console(width=300))
    printed = capsys.readouterr().out
    assert "failed: it contradicts itself: padding at 1x" in printed
