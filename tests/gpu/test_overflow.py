"""Injected overflow: the divergence monitor names the module and acts as its options say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertmp.core.errors import TrainingStopped
from bertmp.training.metrics import read_metrics
from tests.gpu.conftest import Run, losses

LAYER = "bert.encoder.layer.1.intermediate.dense"


@pytest.fixture
def trained(run: Run) -> Path:
    """A checkpoint to damage."""
    return run("sound", precision="fp32", steps=2)[0].checkpoint


def changed(checkpoint: Path, folder: Path, name: str, change: Any) -> Path:
    """A copy of a checkpoint with one weight changed in place."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def events(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line.get("event") == "non-finite"]


def test_an_activation_beyond_fp16_is_named(trained: Path, run: Run, tmp_path: Path) -> None:
    model = changed(trained, tmp_path / "steep", f"{LAYER}.weight", lambda weight: weight.mul_(1e7))
    with pytest.raises(TrainingStopped):
        run("run", model=model, precision="fp16", steps=10, max_consecutive_skips=2, max_rollbacks=0)
    found = events(tmp_path / "run")
    assert len(found) == 2
    assert {event["module"] for event in found} == {LAYER}
    assert {event["kind"] for event in found} == {"output"}
    assert [event["action"] for event in found] == ["skip", "stop"]


@pytest.mark.usefixtures("bf16")
def test_the_same_activation_fits_bf16(trained: Path, run: Run, tmp_path: Path) -> None:
    model = changed(trained, tmp_path / "steep", f"{LAYER}.weight", lambda weight: weight.mul_(1e7))
    result, lines = run("run", model=model, precision="bf16", steps=4, learning_rate=1e-6)
    assert result.skipped_steps == 0
    assert all(loss == loss for loss in losses(lines))


def test_a_weight_that_is_nan_is_named(trained: Path, run: Run, tmp_path: Path) -> None:
    def spoil(weight: torch.Tensor) -> None:
        weight[3, 5] = float("nan")

    model = changed(trained, tmp_path / "broken", f"{LAYER}.weight", spoil)
    with pytest.raises(TrainingStopped, match=LAYER):
        run("run", model=model, precision="fp16", steps=10, max_rollbacks=0)
    (event,) = events(tmp_path / "run")
    assert (event["module"], event["kind"], event["action"]) == (LAYER, "parameter", "stop")


def test_a_scale_that_is_too_high_is_no_fault(run: Run, tmp_path: Path) -> None:
    result, _ = run("run", precision="fp16", steps=16, init_loss_scale=2.0**30)
    found = events(tmp_path / "run")
    assert result.skipped_steps == len(found) > 0
    assert all(event["expected"] and event["kind"] == "gradient" for event in found)
