"""Engines on a GPU: built there, inspected, run and measured. Needs TensorRT or TensorRT-RTX besides CUDA.

None of this has been run: it is written to the documented API of both.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnx_ir", reason="needs onnx-ir")
pytest.importorskip("pydantic", reason="needs pydantic")

from bertmp.core.errors import InputError
from bertmp.core.hardware import find_gpu
from bertmp.export.engine.build import EngineResult, build_engine
from bertmp.export.engine.compatibility import EngineFile, runs_on
from bertmp.export.engine.engine_options import Shape
from bertmp.export.engine.runtime import SLOTS, Engine, load_engine
from tests.export.engine_graphs import LABELS, VOCABULARY, save_bundle

pytestmark = pytest.mark.skipif(
    all(importlib.util.find_spec(name) is None for name in ("tensorrt", "tensorrt_rtx")),
    reason="needs TensorRT or TensorRT-RTX",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineResult]:
    """A bundle with an engine for this GPU; not to be written to."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU: a rehearsal has none")
    device = find_gpu()
    assert device is not None
    bundle = save_bundle(tmp_path_factory.mktemp("engine") / "bundle", layers=2)
    result = build_engine(bundle)
    if not runs_on(result.compute_capability, device.compute_capability):
        pytest.skip(f"{result.builder} builds no engine for this GPU ({device.compute_capability})")
    return bundle, result


@pytest.fixture
def engine(built: tuple[Path, EngineResult]) -> Engine:
    return load_engine(built[0] / "engine")


def batch(rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def test_the_driver_tells_what_torch_tells(cuda: torch.device) -> None:
    device = find_gpu()
    assert device is not None
    assert device.name == torch.cuda.get_device_name(0)
    assert device.compute_capability == ".".join(map(str, torch.cuda.get_device_capability(0)))
    # NVML counts what the driver keeps for itself, CUDA does not.
    total = torch.cuda.get_device_properties(0).total_memory
    assert total <= device.memory_bytes <= 1.02 * total


def test_the_inspector_agrees_with_the_proof(built: tuple[Path, EngineResult]) -> None:
    inspection = built[1].inspection
    assert inspection["run"], inspection
    assert inspection["verified"], inspection
    assert list(inspection["violations"]) == []
    assert inspection["typed"] > 0
    assert inspection["layers"] > 0
    assert inspection["seen"] > 0


def test_it_answers_like_the_graph(built: tuple[Path, EngineResult], engine: Engine) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(built[0] / "model.fp16.onnx", providers=["CPUExecutionProvider"])
    for rows, length in ((1, 1), (3, 7), (8, 16), (5, 40), (32, 64), (3, 7)):
        inputs = batch(rows, length, seed=length)
        found = engine(inputs)["logits"]
        assert found.shape == (rows, LABELS)
        np.testing.assert_allclose(found, session.run(["logits"], inputs)[0], atol=5e-3)


def test_a_shape_is_prepared_once_and_replayed_from_a_graph(engine: Engine) -> None:
    slot = engine.prepare(Shape(2, 8))
    assert engine.prepare(Shape(2, 8)) is slot
    assert slot.graph is not None
    first = engine(batch(2, 8, seed=1))["logits"]
    other = engine(batch(2, 8, seed=2))["logits"]
    assert not np.array_equal(first, other)  # the graph reads new inputs
    np.testing.assert_array_equal(engine(batch(2, 8, seed=1))["logits"], first)


def test_running_allocates_nothing(engine: Engine) -> None:
    inputs = batch(4, 16)
    engine(inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        engine(inputs)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_prepared_shapes_stay_bounded(engine: Engine) -> None:
    for length in range(1, 65):
        engine(batch(1, length))
        engine(batch(2, length))
    assert len(engine._slots) == SLOTS


def test_a_shape_beyond_the_profiles_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="no profile of the engine holds 33x8"):
        engine(batch(33, 8))


def test_the_bench_measures_every_profile(built: tuple[Path, EngineResult]) -> None:
    from bertmp.export.engine.bench import bench_engine

    result = bench_engine(built[0], seconds=1.0)
    assert len(result.rows) == len(built[1].profiles)
    for row in result.rows:
        assert row.texts_per_second > 0
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms


def test_the_engine_is_consistent_at_every_profile(built: tuple[Path, EngineResult], engine: Engine) -> None:
    from bertmp.export.engine.bench import bench_engine

    found = bench_engine(built[0], seconds=0.1).consistency
    assert found.passed, found.sentence()
    assert {str(profile.max) for profile in engine.profiles} <= {result.shape for result in found.results}


def test_weights_can_be_left_out(tmp_path: Path, cuda: torch.device) -> None:
    full = build_engine(save_bundle(tmp_path / "full"), profiles=["2x8"])
    stripped = build_engine(save_bundle(tmp_path / "stripped"), profiles=["2x8"], weights="stripped")
    assert stripped.engine_bytes < full.engine_bytes
    with pytest.raises(InputError, match="without its weights"):
        load_engine(stripped.folder)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="needs TensorRT itself")
def test_timings_are_kept_a_version_and_gpu(tmp_path: Path, cuda: torch.device) -> None:
    kept = tmp_path / "timings"
    kept.mkdir()
    for name in ("one", "two"):
        build_engine(save_bundle(tmp_path / name), profiles=["2x8"], builder="tensorrt", timing_cache=kept)
    [file] = kept.iterdir()
    device = find_gpu()
    assert device is not None
    assert device.compute_capability in file.name


def test_the_engine_knows_its_own_file(engine: Engine) -> None:
    assert isinstance(engine.file, EngineFile)
    assert [str(profile) for profile in engine.profiles] == list(engine.file.profiles)
