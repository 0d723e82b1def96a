"""Checkpoints as people bring them, from the folder to a real server: limits of length, names of labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertmp import export_checkpoint, parity, train
from bertmp.core.errors import InputError
from bertmp.export.bundle import Bundle, read_labels
from bertmp.model.checkpoint import load_checkpoint, save_checkpoint
from bertmp.serve.client import Client
from bertmp.serve.parity_stage import TritonStage
from tests.conftest import RunBertmp
from tests.serve.bundles import SAMPLES, deploy
from tests.serve.conftest import Served

pytestmark = pytest.mark.slow

PROTOCOLS = ("grpc", "http")
LIMIT = 16
LONG = "How far is it from the river to the old red house by the great water of the north ?"
TEXTS = ["Who ?", LONG, "Where is it ?"]


def by_transformers(checkpoint: Path, texts: Sequence[str]) -> tuple[list[int], list[str], np.ndarray]:
    """Tokens, label and probabilities of each text, cut where transformers cuts it."""
    transformers: Any = pytest.importorskip("transformers", reason="the reference")
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.BertForSequenceClassification.from_pretrained(checkpoint).eval()
    tokens, labels, rows = [], [], []
    for text in texts:
        encoded = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            probabilities = model(**encoded).logits[0].softmax(-1)
        tokens.append(encoded["input_ids"].shape[1])
        labels.append(model.config.id2label[int(probabilities.argmax())])
        rows.append(probabilities.numpy())
    return tokens, labels, np.stack(rows)


def limited(checkpoint: Path, folder: Path, limit: object) -> Path:
    """A copy of a checkpoint whose tokenizer names another limit."""
    copy = Path(shutil.copytree(checkpoint, folder))
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": limit}))
    return copy


@pytest.fixture(scope="module")
def checkpoint(bundle: Path) -> Path:
    return Path(Bundle.open(bundle).stage("export", "").settings["checkpoint"])


@pytest.fixture(scope="module", params=["foreign", "trained"])
def short(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for texts of 16 tokens: one that says so, and one that was trained so."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "foreign":
        return limited(checkpoint, folder / "checkpoint", LIMIT)
    labels = load_checkpoint(checkpoint).config.labels
    data = folder / "train.tsv"
    data.write_text("".join(f"{label}\t{LONG}\n" for label in labels))
    train("classification", data, checkpoint, folder / "run", steps=1, max_length=LIMIT)
    return folder / "run" / "final"


def test_texts_are_cut_where_the_checkpoint_says(
    short: Path, served: Served, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    bundle = export_checkpoint(short, tmp_path / "bundle", fp16=False).bundle
    tokens, labels, probabilities = by_transformers(short, TEXTS)
    assert tokens[1] == LIMIT
    assert [len(row) for row in Bundle.open(bundle).tokenizer.encode(TEXTS)] == tokens
    name = f"short-{short.name}"
    done = deploy(bundle, name, served.repository, served.url("http"))
    assert "texts are truncated to 16 tokens, as the checkpoint's tokenizer says" in done.notes
    for protocol in PROTOCOLS:
        with Client(served.url(protocol), protocol) as client:
            found = client.classify(name, TEXTS)
        assert found.labels == labels
        np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-5)
        assert found.tokens.tolist() == tokens
        assert found.truncated.tolist() == [False, True, False]
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    stage = TritonStage(served.url("grpc"), name)
    result = parity(bundle, tmp_path / "texts.txt", extra_stages=[stage])
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert result.data.truncated == result.stage("triton").details["truncated"] == 1
    asked = run_bertmp("infer", name, *TEXTS, "--url", served.url("grpc"), "--json")
    assert asked.stderr == "text 2 was too long: its first 16 tokens were read\n"
    answers = json.loads(asked.stdout)
    assert [(one["truncated"], one["tokens"]) for one in answers] == [
        (count == LIMIT, count) for count in tokens
    ]


@pytest.mark.parametrize("limit", [10**30, 1e30, 100, None])
def test_a_limit_beyond_the_positions_does_not_count(checkpoint: Path, tmp_path: Path, limit: object) -> None:
    assert load_checkpoint(limited(checkpoint, tmp_path / "c", limit)).tokenizer.max_length == 64


@pytest.mark.parametrize("limit", [2, "16", True, float("nan")])
def test_a_limit_that_leaves_no_text_is_refused(checkpoint: Path, tmp_path: Path, limit: object) -> None:
    with pytest.raises(InputError, match=r"model_max_length is .*tokenizer_config\.json.*at least 3"):
        load_checkpoint(limited(checkpoint, tmp_path / "c", limit))


ODD = ("N/A", "C++, C#", "naïve ✓", "line\u2028sep", "nel\u0085y", "😀")
HOSTILE = ["Who ?", "x" * 3000, "\0 null", "\ufeffbom", "a\nb\tc", "😀😀", "very " * 900]


def test_odd_labels_are_served_as_they_are(
    checkpoint: Path, served: Served, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    loaded = load_checkpoint(checkpoint)
    config = replace(loaded.config, labels=ODD)
    save_checkpoint(tmp_path / "odd", loaded.model, config, loaded.tokenizer)
    bundle = export_checkpoint(tmp_path / "odd", tmp_path / "bundle", fp16=False).bundle
    assert tuple(read_labels(bundle / "labels.txt")) == ODD
    deploy(bundle, "odd", served.repository, served.url("http"))
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in HOSTILE))
    tokens, labels, probabilities = by_transformers(tmp_path / "odd", [*SAMPLES, *HOSTILE])
    assert len(set(labels)) > 2, "the texts must not all have one label"
    start = len(SAMPLES)
    for protocol in PROTOCOLS:
        with Client(served.url(protocol), protocol) as client:
            assert tuple(client.labels("odd", "Who ?")) == ODD
            found = client.classify("odd", SAMPLES)
        assert found.labels == labels[:start]
        np.testing.assert_allclose(found.probabilities, probabilities[:start], atol=1e-5)
        where = ("--protocol", protocol, "--url", served.url(protocol))
        asked = run_bertmp("infer", "odd", "--data", tmp_path / "ask.jsonl", *where, "--json")
        answers = json.loads(asked.stdout)
        assert [one["label"] for one in answers] == labels[start:]
        assert [one["tokens"] for one in answers] == tokens[start:]
        assert [one["text"] for one in answers] == HOSTILE
        np.testing.assert_allclose(
            [one["probability"] for one in answers], probabilities[start:].max(axis=1), atol=1e-5
        )
