"""FP16 with its GradScaler and BF16 on the GPU: types, curves, scale."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bertmp.data.batches import length_sorted_batches
from bertmp.model.bert import LayerNorm, Pooler
from bertmp.model.checkpoint import load_checkpoint
from bertmp.model.heads import LossOptions
from bertmp.training.amp import PrecisionPolicy
from tests.gpu.conftest import Run, losses
from tests.gpu.texts import labelled

HALF = ["fp16", "bf16"]
STEPS = 48


@pytest.mark.parametrize("precision", HALF)
def test_the_losses_follow_fp32(precision: str, run: Run) -> None:
    _, exact = run("exact", precision="fp32", steps=STEPS)
    result, half = run("half", precision=precision, steps=STEPS)
    assert result.precision == precision
    expected, found = np.array(losses(exact)), np.array(losses(half))
    assert len(found) == STEPS
    assert expected[-8:].mean() < 0.7 * expected[:8].mean(), "FP32 itself has not learnt"
    assert np.abs(found - expected)[:8].max() < 0.02
    assert np.abs(found - expected).mean() < 0.05


@pytest.mark.parametrize("precision", HALF)
def test_weights_stay_in_fp32(precision: str, run: Run) -> None:
    result, _ = run("run", precision=precision, steps=2)
    assert {tensor.dtype for tensor in load_file(result.checkpoint / "model.safetensors").values()} == {
        torch.float32
    }


def test_auto_is_fp16_on_a_gpu(cuda: torch.device, run: Run) -> None:
    result, lines = run("run", steps=2)
    assert result.precision == "fp16"
    assert lines[0]["loss_scale"] == 2.0**16
    assert 0 < result.peak_memory_bytes < torch.cuda.get_device_properties(cuda).total_memory


@pytest.mark.parametrize("precision", HALF)
def test_what_must_be_fp32_is_fp32_under_autocast(precision: str, device: torch.device, run: Run) -> None:
    """The type at every module, forward and backward, in one step of a real batch."""
    result, _ = run("run", precision=precision, steps=1)
    loaded = load_checkpoint(result.checkpoint)
    head = loaded.model.to(device).train()
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen[name] = output.dtype

        return hook

    for name, module in head.named_modules():
        module.register_forward_hook(note(name))
    policy = PrecisionPolicy.resolve(precision, "dynamic", device.type)
    data = labelled(loaded)
    with policy.autocast():
        summed = head.loss_sums(
            data.batch(length_sorted_batches(data.lengths(0), 16)[0], 0).to(device), LossOptions()
        )
    summed.sum().backward()
    for name, module in head.named_modules():
        if isinstance(module, (LayerNorm, Pooler)):
            assert seen[name] == torch.float32, name
        elif isinstance(module, nn.Linear):
            assert seen[name] == policy.dtype, name
    assert summed.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in head.parameters() if parameter.grad is not None} == {
        torch.float32
    }


def test_the_scale_falls_until_gradients_are_finite_and_then_grows(run: Run) -> None:
    result, lines = run(
        "run", precision="fp16", steps=30, init_loss_scale=2.0**30, loss_scale_growth_interval=4
    )
    steps = [line for line in lines if "learning_rate" in line]
    scales = [line["loss_scale"] for line in steps]
    skipped = [0, *(line["skipped_steps"] for line in steps)]
    assert scales[0] == pytest.approx(2.0**30)
    assert 1 <= result.skipped_steps < 30
    for step in range(1, len(steps)):
        if skipped[step] > skipped[step - 1]:
            assert scales[step] / scales[step - 1] == pytest.approx(0.5)
        else:
            assert round(scales[step] / scales[step - 1], 6) in (1, 2)
    assert any(after > before for before, after in pairwise(scales))
    assert losses(lines)[-1] < losses(lines)[0]


def test_a_static_scale_stays(run: Run) -> None:
    _, lines = run("run", precision="fp16", loss_scale="1024", steps=4)
    assert [line["loss_scale"] for line in lines] == [1024.0] * 4
