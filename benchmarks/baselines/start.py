"""The start that both sides pre-train from: random weights, made and written by the peer's own library."""

from __future__ import annotations

from typing import Any


def measure(model: str, out: str) -> dict[str, Any]:
    """Writes a BertForPreTraining of the shape of the checkpoint `model`, with its tokenizer, to `out`."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForPreTraining

    torch.manual_seed(0)
    BertForPreTraining(BertConfig.from_pretrained(model)).save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    return {}
