"""The shapes that a served engine is asked at. ONNX Runtime with profiles stands in for a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bertmp.core.errors import InputError
from bertmp.export.consistency.probe import random_probe
from bertmp.export.consistency.tolerance import tolerance_of
from bertmp.export.engine.engine_options import Profile, Shape, choose_profile, parse_profile
from bertmp.serve.served_consistency import check_encoder
from tests.export.engine_graphs import POSITIONS, VOCABULARY, small_bert
from tests.export.inconsistent_graphs import Fault, roll_large_batches

SHAPES = ("1x1:8x16:32x16", "1x17:8x32:64x64", "64x1:64x8:64x16")
PROFILES = [parse_profile(text) for text in SHAPES]


class EngineOnServer:
    """A client of a server that runs an engine: like Triton, it fails what no profile holds."""

    def __init__(self, fault: Fault | None) -> None:
        model, self.plan = small_bert()
        if fault is not None:
            fault(model)
        serialized = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
        self.asked: set[Shape] = set()

    def config(self, model: str) -> dict[str, Any]:
        assert model == "trec_encoder"
        return {"platform": "tensorrt_plan", "max_batch_size": 32}

    def max_batch(self, model: str) -> int:
        return int(self.config(model)["max_batch_size"])

    def infer(
        self, model: str, inputs: dict[str, np.ndarray], outputs: Sequence[str], version: str
    ) -> tuple[dict[str, np.ndarray], int]:
        assert version == "7"
        shape = Shape(*inputs["input_ids"].shape)
        if shape.batch > 32 or choose_profile(PROFILES, shape) is None:
            raise InputError(f"no profile holds {shape}")
        self.asked.add(shape)
        found = self._session.run(list(outputs), inputs)
        return dict(zip(outputs, map(np.asarray, found), strict=True)), 7


@pytest.mark.parametrize("fault", [None, roll_large_batches])
def test_a_served_engine_is_asked_at_every_profile(fault: Fault | None) -> None:
    client, profiles = EngineOnServer(fault), list[Profile](PROFILES)
    probe = random_probe(VOCABULARY, POSITIONS)
    found = check_encoder(client, "trec", 7, probe, tolerance_of(client.plan), profiles)  # type: ignore[arg-type]
    assert client.asked >= {
        Shape(1, 16),
        Shape(8, 16),
        Shape(32, 16),
        Shape(1, 17),
        Shape(8, 32),
        Shape(32, 64),
    }
    broken = {result.shape for result in found.contradictions}
    large = {result.shape for result in found.results if result.shape.startswith("32x")}
    assert large >= {"32x1", "32x16", "32x17", "32x64"}
    assert broken == (set() if fault is None else large)
    assert found.bound_reason == tolerance_of(client.plan).reason


def test_without_its_profiles_a_served_engine_is_asked_like_a_graph() -> None:
    client = EngineOnServer(None)
    probe = random_probe(VOCABULARY, POSITIONS)
    found = check_encoder(client, "trec", 7, probe, tolerance_of(client.plan))  # type: ignore[arg-type]
    assert found.passed
    assert {result.shape for result in found.results} >= {"32x16", "5x64"}
