"""The engine as a stage of parity: what it says without a GPU, and how it lays out batches."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Encoded
from bertmp.export.bundle import ENGINE, FP16_GRAPH, Bundle
from bertmp.export.engine.build import build_engine
from bertmp.export.engine.engine_options import Shape, default_profiles, parse_profile
from bertmp.export.parity.bundle_stages import EngineStage, fill_batch, plan_batches
from bertmp.export.parity.stage import ParityInputs, Skipped, StageOutput
from tests.export.engine_graphs import LABELS, VOCABULARY, save_bundle

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


def some_inputs(*lengths: int) -> ParityInputs:
    encoded = [
        Encoded(
            input_ids=[(row + at) % VOCABULARY for at in range(length)],
            token_type_ids=[0] * length,
            truncated=False,
        )
        for row, length in enumerate(lengths)
    ]
    return ParityInputs([""] * len(encoded), None, None, encoded)


@needs_builder
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, where the engine runs")
def test_without_a_gpu_the_verification_stands_in(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle")
    build_engine(bundle, profiles=["1x1:2x8:4x16"])
    answer = EngineStage(Bundle.open(bundle)).run(some_inputs(5, 7), advance=lambda count: None)
    assert isinstance(answer, Skipped)
    assert answer.reason == "no GPU"
    assert answer.verification["verified"] is True
    assert answer.verification["summary"]["SOFTMAX"] == {"FLOAT": 1}  # type: ignore[index]


@needs_builder
def test_a_stale_engine_is_refused(tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "bundle")
    build_engine(bundle, profiles=["1x8"])
    whole = (bundle / ENGINE).read_bytes()
    (bundle / ENGINE).write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"build-engine stage is stale: engine/model\.plan"):
        EngineStage(Bundle.open(bundle)).run(some_inputs(5), advance=lambda count: None)
    (bundle / ENGINE).write_bytes(whole)
    (bundle / FP16_GRAPH).write_bytes(b"another graph")
    with pytest.raises(InputError, match=r"build-engine stage is stale: model\.fp16\.onnx"):
        EngineStage(Bundle.open(bundle)).run(some_inputs(5), advance=lambda count: None)


def test_a_bundle_without_an_engine_says_so(tmp_path: Path) -> None:
    answer = EngineStage(Bundle.open(save_bundle(tmp_path / "bundle"))).run(
        some_inputs(5), advance=lambda count: None
    )
    assert isinstance(answer, Skipped)
    assert answer.reason == "no engine was built"


@given(st.lists(st.integers(1, 64), max_size=100))
def test_batches_hold_every_row_once_and_fit_a_profile(lengths: list[int]) -> None:
    profiles = default_profiles(64, 8)
    rows_seen: list[int] = []
    for rows, shape in plan_batches(lengths, profiles):
        assert any(profile.holds(shape) for profile in profiles)
        assert len(rows) <= shape.batch
        assert max(lengths[row] for row in rows) <= shape.length
        rows_seen += rows
    assert sorted(rows_seen) == list(range(len(lengths)))


def test_batches_are_filled_up_to_a_static_profile() -> None:
    [(rows, shape)] = plan_batches([3, 5], [parse_profile("4x8")])
    assert (rows, shape) == ([0, 1], Shape(4, 8))
    batch = fill_batch(some_inputs(3, 5), rows, shape)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    assert batch["attention_mask"].sum(axis=1).tolist() == [3, 5, 1, 1]
    with pytest.raises(InputError, match="an example of 9 tokens is longer than every profile"):
        list(plan_batches([9], [parse_profile("4x8")]))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no NVIDIA GPU: the engine cannot run, only be built"
)
def test_on_a_gpu_the_engine_answers_like_the_graph(tmp_path: Path) -> None:
    import onnxruntime

    bundle = save_bundle(tmp_path / "bundle")
    build_engine(bundle)
    inputs = some_inputs(5, 7, 20, 40, 64, 1)
    counted: list[int] = []
    answer = EngineStage(Bundle.open(bundle)).run(inputs, advance=counted.append)
    if isinstance(answer, Skipped):
        pytest.skip(answer.reason)
    assert isinstance(answer, StageOutput)
    assert sum(counted) == 6
    session = onnxruntime.InferenceSession(bundle / FP16_GRAPH, providers=["CPUExecutionProvider"])
    for row, encoded in enumerate(inputs.encoded):
        expected = session.run(["logits"], fill_batch(inputs, [row], Shape(1, len(encoded))))[0]
        assert answer.logits[row].shape == (LABELS,)
        np.testing.assert_allclose(answer.logits[row], expected[0], atol=5e-3)
