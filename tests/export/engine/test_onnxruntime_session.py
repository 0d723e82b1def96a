"""`build-engine --onnxruntime`: the provider that is taken, the graph that is saved, and its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from bertmp import export_checkpoint
from bertmp.core.errors import InputError, MissingComponent
from bertmp.export.bundle import Bundle
from bertmp.export.engine.onnxruntime_session import PROVIDERS, STAGE, build_session, open_session
from tests.export.engine_graphs import save_graph

CPU = PROVIDERS[-1]


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a real export, of a bare encoder."""
    folder = tmp_path_factory.mktemp("onnxruntime") / "bundle"
    export_checkpoint(tiny, folder, task="encoder")
    return folder


def feed() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(0, 100, (3, 9))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def test_the_first_provider_that_is_here_is_taken_and_recorded(exported: Path) -> None:
    result = build_session(exported)
    available = onnxruntime.get_available_providers()
    assert result.provider == next(name for name in PROVIDERS if name in available)
    entry = Bundle.open(exported).stage(STAGE, "bertmp build-engine --onnxruntime")
    assert entry.results["provider"] == result.provider
    assert entry.tools["onnxruntime"] == onnxruntime.__version__
    assert set(entry.outputs) == {"onnxruntime/model.onnx", "onnxruntime/session.json"}


def test_on_a_processor_the_fp32_graph_is_optimised_and_answers_the_same(exported: Path) -> None:
    result = build_session(exported, providers=[CPU])
    assert result.source == "model.onnx"
    assert result.nodes < result.nodes_before
    assert result.difference < 1e-5
    assert len(onnx.load(result.graph).graph.node) == result.nodes
    session = open_session(exported)
    assert session.get_providers() == [CPU]
    source = onnxruntime.InferenceSession(exported / "model.onnx", providers=[CPU])
    for ours, theirs in zip(session.run(None, feed()), source.run(None, feed()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_provider_that_is_compiled_in_and_not_usable_is_not_recorded(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine with the GPU package and no GPU: the session silently falls back to the processor."""
    compiled = ["CUDAExecutionProvider", CPU]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime can use a GPU here")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: compiled)
    result = build_session(exported, providers=compiled)
    assert result.provider == CPU
    assert result.source == "model.onnx"
    assert open_session(exported).get_providers() == [CPU]


def test_a_stale_session_is_refused(exported: Path) -> None:
    result = build_session(exported, providers=[CPU])
    whole = result.graph.read_bytes()
    result.graph.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"stale: onnxruntime/model\.onnx changed"):
        open_session(exported)
    result.graph.write_bytes(whole)


def test_what_it_cannot_work_with_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes a bundle"):
        build_session(save_graph(tmp_path / "g.onnx"))
    with pytest.raises(InputError, match="not a bundle"):
        build_session(tmp_path)
    with pytest.raises(MissingComponent, match="no provider"):
        build_session(exported, providers=["NoExecutionProvider"])


def test_the_command_takes_no_option_of_the_engines(exported: Path, run_bertmp: Callable[..., Any]) -> None:
    done = run_bertmp("build-engine", exported, "--onnxruntime", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["provider"] in PROVIDERS
    refused = run_bertmp("build-engine", exported, "--onnxruntime", "--max-batch", 8)
    assert refused.returncode == 2
    assert "no such option (--max-batch)" in refused.stderr
