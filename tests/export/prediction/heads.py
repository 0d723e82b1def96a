"""Bundles of tiny checkpoints of every head, with random weights that show in the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bertmp import export_checkpoint
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.checkpoint import save_checkpoint
from bertmp.model.config import BertConfig
from bertmp.model.heads import HEADS
from tests.models import head

LENGTH = 24
CONFIG = BertConfig(
    vocab_size=30522,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
)
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
CLASSES = ("good", "bad", "odd")


class Heads:
    """Makes each task's checkpoint and bundle once."""

    def __init__(self, folder: Path, minilm: Path) -> None:
        self.folder, self.tokenizer = folder, Tokenizer.load(minilm, LENGTH)

    def labels(self, task: str) -> Sequence[str]:
        if task == "regression":
            return ("LABEL_0",)
        return ENTITIES if task == "token-classification" else CLASSES if HEADS[task].classes else ()

    def checkpoint(self, task: str, seed: int = 0, labels: Sequence[str] = (), pairs: bool = False) -> Path:
        name = "-".join([task, str(seed), *labels, *["pairs"] * pairs])
        folder = self.folder / "checkpoints" / name
        if not folder.is_dir():
            named = CONFIG.with_labels(tuple(labels or self.labels(task)))
            config = replace(named.with_text_pairs(pairs))
            save_checkpoint(folder, head(task, config, seed), config, self.tokenizer)
        return folder

    def bundle(
        self,
        task: str,
        seed: int = 0,
        precision: str = "fp16",
        labels: Sequence[str] = (),
        pairs: bool = False,
    ) -> Path:
        source = self.checkpoint(task, seed, labels, pairs)
        folder = self.folder / f"{source.name}-{precision}"
        if not folder.is_dir():
            export_checkpoint(source, folder, fp16=precision != "fp32", precision=low(precision))
        return folder


def low(precision: str) -> str:
    """The low precision that is exported."""
    return "bf16" if precision == "bf16" else "fp16"
