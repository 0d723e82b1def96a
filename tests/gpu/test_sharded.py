"""FSDP2 over NCCL, on as many GPUs as there are, up to two; against one process that shares nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bertmp.training.distributed import DistributedContext
from tests.gpu.sharded_worker import losses

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 5e-2}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_sharded_losses_are_those_of_one_process(
    precision: str, device: torch.device, tmp_path: Path
) -> None:
    size = min(2, torch.cuda.device_count()) or 1
    out = tmp_path / "losses.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"),
            *("--module", "tests.gpu.sharded_worker", str(out), precision),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    sharded = json.loads(out.read_text())
    alone, _ = losses(DistributedContext(device), precision)
    assert sharded["sharded"], "the weights were not sharded"
    assert sharded["size"] == size
    if device.type == "cuda":
        assert "cuda:nccl" in sharded["backends"]
    assert sharded["losses"] == pytest.approx(alone, abs=TOLERANCE[precision])
    assert alone[-1] < 0.9 * alone[0]
