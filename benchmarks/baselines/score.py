"""Scores both sides' pre-trained checkpoints: the peer's model, held-out pairs, fixed masks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.baselines.pretrain import Pairs, batches


def measure(data: str, checkpoint: str, max_length: int, batch_size: int, count: int) -> dict[str, Any]:
    """The FP32 loss without dropout, mean over `count` batches; both sides see the same ones."""
    import torch
    from transformers import AutoTokenizer, BertForPreTraining, set_seed

    set_seed(0)
    network = BertForPreTraining.from_pretrained(checkpoint).eval()
    pairs = Pairs(Path(data), AutoTokenizer.from_pretrained(checkpoint), max_length, 0)
    with torch.no_grad():
        losses = [
            network(**batch).loss.item() for batch in islice(batches(pairs, batch_size, None, 0), count)
        ]
    return {"loss": sum(losses) / len(losses)}
