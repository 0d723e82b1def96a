"""A classifier with opinions, its bundle, and texts with labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bertmp import export_checkpoint
from bertmp.export.bundle import Bundle
from bertmp.export.parity.reading import read_inputs
from bertmp.export.parity.stage_metrics import (
    answers_of,
)
from tests.export.parity_bundles import LABELS, SPECIAL, WORDS, answer_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two layers whose random weights are large enough to have opinions."""
    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.checkpoint import save_checkpoint
    from bertmp.model.config import BertConfig
    from tests.models import classifier

    source, folder = tmp_path_factory.mktemp("vocabulary"), tmp_path_factory.mktemp("model") / "checkpoint"
    (source / "vocab.txt").write_text("\n".join((*SPECIAL, *WORDS, "<", ">", "script", "&")) + "\n")
    tokenizer = Tokenizer.load(source, 40)
    config = BertConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=40,
        labels=LABELS,
    )
    save_checkpoint(folder, classifier(config), config, tokenizer)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as exported; not to be written to."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export_checkpoint(checkpoint, folder)
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of the bundle for one test."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """60 texts of different lengths; the last is too long for the model's 40 positions."""
    choice = np.random.default_rng(3)
    lengths = [*choice.integers(1, 20, 58), 30, 60]
    return [" ".join(choice.choice(WORDS, length)) for length in lengths]


@pytest.fixture(scope="module")
def labelled(exported: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts with the labels that the model gives them, but for one."""
    folder = tmp_path_factory.mktemp("data")
    plain = folder / "plain.txt"
    plain.write_text("\n".join(texts))
    inputs = read_inputs(Bundle.open(exported), plain).inputs
    answers = answers_of(answer_of(exported / "model.onnx", inputs))
    answers[0] = (answers[0] + 1) % len(LABELS)
    path = folder / "labelled.tsv"
    path.write_text("".join(f"{LABELS[a]}\t{text}\n" for a, text in zip(answers, texts, strict=True)))
    return path
