"""The pipeline's benchmark on a tiny model, and the real size of BERT-base and BERT-large where asked for."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest

from benchmarks.memory import run_measured
from benchmarks.pipeline import GOALS, LABELS, MODELS, STAGES, against_goal, measure, table
from bertmp.model.config import BertConfig

needs_builder = pytest.mark.skipif(
    all(importlib.util.find_spec(name) is None for name in ("tensorrt", "tensorrt_rtx")),
    reason="no engine builder is installed",
)

TINY = BertConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=32, labels=LABELS,
)  # fmt: skip


def test_the_memory_of_children_counts() -> None:
    hold = "import time; x = bytearray(200 << 20); print(len(x)); time.sleep(0.2)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    alone = run_measured([sys.executable, "-c", hold])
    nested = run_measured([sys.executable, "-c", child])
    assert alone.code == nested.code == 0
    assert nested.stdout.strip() == str(200 << 20)
    for found in (alone, nested):
        assert 200 << 20 <= found.peak_memory_bytes < 300 << 20
        assert found.seconds > 0.2


def test_a_command_that_fails_is_told_of() -> None:
    done = run_measured([sys.executable, "-c", "import sys; sys.exit('no')"])
    assert (done.code, done.stderr.strip()) == (1, "no")


@needs_builder
@pytest.mark.slow
def test_every_stage_is_measured(tmp_path: Path) -> None:
    results = measure("tiny", TINY, tmp_path)
    assert set(results["seconds"]) == set(results["peak_memory_bytes"]) == {stage.name for stage in STAGES}
    assert results["total_seconds"] == pytest.approx(sum(results["seconds"].values()))
    assert results["verified"] is True
    assert against_goal(results) == {}
    assert table(results).row_count == len(STAGES) + 1


@needs_builder
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.slow  # minutes, and several GiB
def test_models_of_real_size_are_built_and_verified(name: str, tmp_path: Path) -> None:
    results = measure(name, MODELS[name], tmp_path)
    assert results["verified"] is True
    limit = GOALS[name]["peak_memory_bytes"] if name in GOALS else math.inf
    assert max(results["peak_memory_bytes"].values()) <= limit
