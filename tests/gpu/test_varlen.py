"""Packed texts through torch's variable-length attention, against the same texts padded and one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bertmp.model.checkpoint import LoadedCheckpoint, load_checkpoint
from bertmp.model.heads import LossOptions
from bertmp.training.amp import PrecisionPolicy
from tests.gpu.conftest import CLASSES
from tests.gpu.texts import labelled

HALF = ["fp16", "bf16"]
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}


@pytest.fixture(scope="session")
def loaded(start: Path, device: torch.device) -> LoadedCheckpoint:
    """A classifier with random weights, on the device; its dropout is 0."""
    loaded = load_checkpoint(start, "classification", CLASSES)
    loaded.model.to(device).train()
    return loaded


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The type of each call of torch's own kernel, which still does the work."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no varlen_attn")
    real, seen = varlen.varlen_attn, []

    def counted(query: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(query.dtype)
        return real(query, *rest, **options)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    return seen


def packed_logits(loaded: LoadedCheckpoint, device: torch.device, precision: str, rows: np.ndarray) -> Tensor:
    """Logits of packed texts, FP32 `[rows, labels]`."""
    head = loaded.model
    with PrecisionPolicy.resolve(precision, "dynamic", device.type).autocast():
        pooled, _ = head.encode_at(labelled(loaded).batch(rows, 0).to(device))
        return head.classify(pooled)


def padded_logits(loaded: LoadedCheckpoint, device: torch.device, precision: str) -> Tensor:
    """Logits of the same texts filled up to one length."""
    data = labelled(loaded)
    longest = max(data.lengths(0))
    ids = torch.zeros(len(data), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, encoded in enumerate(data.rows):
        ids[row, : len(encoded)] = torch.tensor(encoded.input_ids)
        mask[row, : len(encoded)] = 1
    with PrecisionPolicy.resolve(precision, "dynamic", device.type).autocast():
        return loaded.model(ids.to(device), mask.to(device), torch.zeros_like(ids).to(device))


@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_packed_is_padded_is_one_by_one(
    precision: str, loaded: LoadedCheckpoint, device: torch.device, calls: list[torch.dtype]
) -> None:
    rows = np.arange(len(labelled(loaded)))
    with torch.no_grad():
        packed = packed_logits(loaded, device, precision, rows)
        layers = loaded.config.num_hidden_layers
        if device.type == "cuda":
            half = PrecisionPolicy.resolve(precision, "dynamic", "cuda").dtype
            assert calls == ([] if precision == "fp32" else [half] * layers)
        padded = padded_logits(loaded, device, precision)
        alone = torch.cat([packed_logits(loaded, device, precision, rows[[row]]) for row in rows])
        exact = padded_logits(loaded, device, "fp32")
    for found in (packed, padded, alone):
        torch.testing.assert_close(found, exact, rtol=0, atol=TOLERANCE[precision] * float(exact.abs().max()))


@pytest.mark.parametrize("precision", HALF)
def test_gradients_are_those_of_fp32(
    precision: str, loaded: LoadedCheckpoint, device: torch.device, calls: list[torch.dtype]
) -> None:
    data = labelled(loaded)
    batch = data.batch(np.arange(len(data)), 0).to(device)

    def gradient(mode: str) -> Tensor:
        loaded.model.zero_grad(set_to_none=True)
        with PrecisionPolicy.resolve(mode, "dynamic", device.type).autocast():
            loss = loaded.model.loss_sums(batch, LossOptions()).sum() / len(data)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.grad is not None])

    exact, found = gradient("fp32"), gradient(precision)
    assert bool(calls) == (device.type == "cuda")
    assert float(torch.nn.functional.cosine_similarity(exact, found, dim=0)) > 0.99
    assert float(found.norm() / exact.norm()) == pytest.approx(1.0, abs=0.05)


def test_attention_dropout_uses_length_buckets(
    loaded: LoadedCheckpoint, device: torch.device, calls: list[torch.dtype]
) -> None:
    layers = loaded.model.bert.encoder.layer
    for layer in layers:
        layer.attention.self.dropout_rate = 0.1
    try:
        logits = packed_logits(loaded, device, "fp16", np.arange(8))
    finally:
        for layer in layers:
            layer.attention.self.dropout_rate = 0.0
    assert calls == []
    assert bool(logits.isfinite().all())
