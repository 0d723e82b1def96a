"""Small models with random weights, for tests that need a model and not what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bertmp.data.tokenizer import Tokenizer
from bertmp.model.bert import initialise
from bertmp.model.config import BertConfig
from bertmp.model.heads import HEADS, EncoderOnly, Head, SequenceClassifier
from bertmp.model.packed import Batch


def encoder(config: BertConfig, seed: int = 0) -> EncoderOnly:
    """A bare encoder; weights are drawn wide enough that every part of it shows in the output."""
    return _drawn(EncoderOnly(config), seed)


def classifier(config: BertConfig, seed: int = 0) -> SequenceClassifier:
    """A classifier over `config.labels`."""
    return _drawn(SequenceClassifier(config), seed)


def head(task: str, config: BertConfig, seed: int = 0) -> Head:
    """The head of a task."""
    return _drawn(HEADS[task](config), seed)


def small_tokenizer(folder: Path, words: Sequence[str] = ()) -> Tokenizer:
    """A lower-casing tokenizer that spells with single letters and knows some whole `words`."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{x}" for x in letters)]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return Tokenizer.load(folder)


def _drawn(model: Head, seed: int) -> Head:  # type: ignore[misc]
    generator = torch.Generator().manual_seed(seed)
    initialise(model, model.config, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def batch(vocabulary: int, rows: int = 3, length: int = 11, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids of rows of different lengths, the first one full, padded at the end; two segments each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (rows, length), generator=generator)
    lengths = torch.tensor([max(2, length - 3 * row) for row in range(rows)])
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    types = (torch.arange(length)[None] >= lengths[:, None] // 2).long() * mask
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


def packed(inputs: dict[str, torch.Tensor], **targets: torch.Tensor) -> Batch:
    """A padded batch without its padding."""
    mask = inputs["attention_mask"].bool()
    lengths = tuple(mask.sum(1).tolist())
    return Batch(inputs["input_ids"][mask], inputs["token_type_ids"][mask], lengths, targets)
