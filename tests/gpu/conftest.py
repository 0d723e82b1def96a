"""A GPU to test on, and a model and data made on the spot: nothing here is downloaded.

`BERTMP_REHEARSE=1` runs what can be run on the CPU, so that a machine without a GPU can tell whether the
tests themselves are sound.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bertmp.training.metrics import read_metrics
from bertmp.training.train import TrainResult, train

WORDS = 200
CLASSES = ("colour", "number", "place", "person")
REHEARSING = os.environ.get("BERTMP_REHEARSE") == "1"


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The first GPU; in a rehearsal the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if REHEARSING:
        return torch.device("cpu")
    pytest.skip("needs a CUDA GPU ('make test-gpu' on a machine that has one)")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """A GPU, without which the test says nothing at all."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA GPU: a rehearsal has none")
    return device


@pytest.fixture
def bf16(device: torch.device) -> None:
    """A device that multiplies BF16 in hardware."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("needs BF16 tensor cores, compute capability 8.0")


@pytest.fixture(autouse=True)
def _precision(request: pytest.FixtureRequest) -> None:
    """A test for several precisions is left out in the one that the device lacks."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("precision") == "bf16":
        request.getfixturevalue("bf16")


CONFIG = {
    "model_type": "bert",
    "vocab_size": WORDS + 5,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    # Without dropout the curves of two precisions differ by rounding alone, and the variable-length
    # attention can be used.
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `config.json` with a vocabulary beside it: a start from random weights."""
    folder = tmp_path_factory.mktemp("start")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS))]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder / "config.json"


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 labelled texts of 3 to 40 words; the words of a text tell its label."""
    path = tmp_path_factory.mktemp("data") / "questions.tsv"
    chance = random.Random(0)
    lines = []
    for row in range(512):
        kind = row % len(CLASSES)
        own = range(kind, WORDS, len(CLASSES))
        words = [
            chance.choice(own if chance.random() < 0.8 else range(WORDS))
            for _ in range(chance.randint(3, 40))
        ]
        lines.append(f"{CLASSES[kind]}\t{' '.join(f'w{word}' for word in words)}\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


Run = Callable[..., tuple[TrainResult, list[dict[str, Any]]]]


@pytest.fixture
def run(start: Path, questions: Path, tmp_path: Path) -> Run:
    """Trains on the questions: `run("name", precision="fp16", …)` → the result and its metrics' lines."""

    def run(name: str, **options: Any) -> tuple[TrainResult, list[dict[str, Any]]]:
        settings = {"model": start, "batch_size": 32, "learning_rate": 3e-3, "log_every": 1, **options}
        result = train("classification", questions, out=tmp_path / name, **settings)
        return result, read_metrics(tmp_path / name / "metrics.jsonl")

    return run


def losses(lines: list[dict[str, Any]]) -> list[float]:
    """Each logged step's loss."""
    return [line["loss"] for line in lines if "learning_rate" in line]
