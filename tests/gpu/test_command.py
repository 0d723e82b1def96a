"""`bertmp train` on the GPU, as a user types it: from start to checkpoint, and on from a saved state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from bertmp.model.checkpoint import load_checkpoint
from bertmp.training.metrics import read_metrics
from tests.gpu.conftest import CLASSES, losses

ROOT = Path(__file__).resolve().parents[2]


def bertmp(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bertmp", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def arguments(start: Path, questions: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (
        *("train", "classification", "--data", questions, "--eval-data", questions, "--model", start),
        *("--out", out, "--learning-rate", "3e-3", "--json", *more),
    )


def test_a_run_from_start_to_checkpoint(
    start: Path, questions: Path, device: torch.device, tmp_path: Path
) -> None:
    done = bertmp(*arguments(start, questions, tmp_path / "run", "--epochs", 6))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 96
    assert result["eval"]["eval_accuracy"] > 0.8
    assert result["examples_per_second"] > 0
    if device.type == "cuda":
        assert result["precision"] == "fp16"
        assert result["peak_memory_bytes"] < 2**30
    checkpoint = Path(result["checkpoint"])
    theirs = transformers.BertForSequenceClassification.from_pretrained(checkpoint).to(device).eval()
    loaded = load_checkpoint(checkpoint)
    assert loaded.labels == tuple(sorted(CLASSES))
    ids = torch.randint(5, loaded.config.vocab_size, (4, 12), generator=torch.Generator().manual_seed(0))
    inputs = ids.to(device), torch.ones_like(ids).to(device), torch.zeros_like(ids).to(device)
    with torch.no_grad():
        expected = theirs(*inputs).logits
        found = loaded.model.to(device)(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_resumed_run_goes_on_where_it_was(
    precision: str, start: Path, questions: Path, tmp_path: Path
) -> None:
    """Close, not bitwise: CUDA's sums of embeddings' gradients have no fixed order."""
    options = ("--precision", precision, "--steps", 24, "--save-every", 8, "--log-every", 1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        done = bertmp(*arguments(start, questions, out, *options))
        assert done.returncode == 0, done.stderr
    last = max((broken / "steps").iterdir())
    for part in last.iterdir():
        part.unlink()
    last.rmdir()
    again = bertmp(*arguments(start, questions, broken, *options, "--resume"))
    assert again.returncode == 0, again.stderr
    assert "resuming after step 16" in again.stderr
    expected, found = (losses(read_metrics(out / "metrics.jsonl")) for out in (whole, broken))
    assert found == pytest.approx(expected, abs=2e-2)


def test_a_wrong_precision_is_one_line(start: Path, questions: Path, tmp_path: Path) -> None:
    done = bertmp(*arguments(start, questions, tmp_path / "run", "--precision", "fp8"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
