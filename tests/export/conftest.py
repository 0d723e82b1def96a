"""A real classifier that needs no training, as a checkpoint and as a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto

from bertmp import export_checkpoint
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.checkpoint import load_checkpoint, save_checkpoint
from bertmp.model.heads import SequenceClassifier

LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
POSITIONS = 64


@dataclass(frozen=True)
class Questions:
    """The question classifier.

    Attributes:
        checkpoint: its Hugging Face folder.
        bundle: its FP32 export, with the tokenizer.
        texts: a file of a few questions that it was not fitted on.
    """

    checkpoint: Path
    bundle: Path
    texts: Path

    def graph(self) -> ModelProto:
        """The FP32 graph, fresh from the disk: to be changed as a test likes."""
        return onnx.load(self.bundle / "model.onnx")


@pytest.fixture(scope="session")
def questions(minilm: Path, trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Questions:
    """MiniLM with a linear layer fitted to 600 questions by least squares, of at most 64 tokens."""
    folder = tmp_path_factory.mktemp("questions")
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t", 1) for line in lines[:616]]
    model, tokenizer = _fitted(minilm, rows[16:])
    save_checkpoint(folder / "checkpoint", model, model.config, tokenizer)
    (folder / "texts.txt").write_text("".join(f"{text}\n" for _, text in rows[:16]), encoding="utf-8")
    bundle = export_checkpoint(folder / "checkpoint", folder / "bundle", fp16=False).bundle
    return Questions(folder / "checkpoint", bundle, folder / "texts.txt")


@torch.no_grad()
def _fitted(minilm: Path, rows: list[list[str]]) -> tuple[SequenceClassifier, Tokenizer]:
    encoder = load_checkpoint(minilm, "encoder")
    model = SequenceClassifier(replace(encoder.config, labels=LABELS, max_position_embeddings=POSITIONS))
    weights = encoder.model.state_dict()
    positions = "bert.embeddings.position_embeddings.weight"
    weights[positions] = weights[positions][:POSITIONS]
    model.load_state_dict(weights, strict=False)
    model.eval()
    tokenizer = Tokenizer.load(minilm, POSITIONS)
    pooled = torch.cat(
        [
            _pooled(model, tokenizer, [text for _, text in rows[at : at + 60]])
            for at in range(0, len(rows), 60)
        ]
    )
    wanted = torch.eye(len(LABELS))[[LABELS.index(label) for label, _ in rows]]
    centre = pooled.mean(0)
    part = pooled - centre
    solved = torch.linalg.solve(part.T @ part + torch.eye(part.shape[1]), part.T @ (wanted - wanted.mean(0)))
    sharpness = 10  # least squares gives margins below 1, training larger ones
    model.classifier.weight.copy_(sharpness * solved.T)
    model.classifier.bias.copy_(sharpness * (wanted.mean(0) - centre @ solved))
    return model, tokenizer


def _pooled(model: SequenceClassifier, tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    encoded = tokenizer.encode(texts)
    shape = (len(texts), max(map(len, encoded)))
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for row, text in enumerate(encoded):
        ids[row, : len(text)] = torch.tensor(text.input_ids)
        mask[row, : len(text)] = 1
    return model.bert(ids, mask, torch.zeros_like(ids))[1]
