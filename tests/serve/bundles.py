"""Small bundles with real graphs and the real tokenizer, and ONNX Runtime's own answers to texts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bertmp
from bertmp.export import bundle as names
from bertmp.export.bundle import Bundle

deploy = partial(bertmp.deploy, allow_unverified=True)
"""Most tests are about bundles of random weights on which parity was never run."""

LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
POSITIONS = 64
SAMPLES = ("Who ?", "Where is it ?", "What does NATO mean ?", "How many days has a year ?", "hello " * 20)


def make_bundle(folder: Path, minilm: Path, seed: int, fp16: bool = False) -> Path:
    """A classifier of two small layers with random weights: other seeds give other answers."""
    from bertmp import export_checkpoint
    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.checkpoint import save_checkpoint
    from bertmp.model.config import BertConfig

    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        labels=LABELS,
    )
    checkpoint = folder / "checkpoint"
    tokenizer = Tokenizer.load(minilm, POSITIONS)
    save_checkpoint(checkpoint, _varied_classifier(config, tokenizer, seed), config, tokenizer)
    export_checkpoint(checkpoint, folder / "bundle", fp16=fp16)
    return folder / "bundle"


def _varied_classifier(config: Any, tokenizer: Any, seed: int) -> Any:
    """A classifier with various answers: the random head is centred on the mean of its inputs."""
    import torch

    from tests.models import classifier

    model = classifier(config, seed)
    with torch.no_grad():
        for name, parameter in model.bert.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(4)  # so that the other tokens reach the first one's state
        pooled = []
        for row in tokenizer.encode(SAMPLES):
            ids = torch.tensor([row.input_ids])
            pooled.append(model.bert(ids, torch.ones_like(ids), torch.zeros_like(ids))[1])
        model.classifier.weight.mul_(10)
        model.classifier.bias.copy_(-model.classifier.weight @ torch.cat(pooled).mean(dim=0))
    return model


def altered(bundle: Path, folder: Path, **files: bytes) -> Path:
    """A copy of a bundle with other bytes in some files (`.` written `__`), with a manifest that matches."""
    copy = Path(shutil.copytree(bundle, folder))
    for name, content in files.items():
        (copy / name.replace("__", ".")).write_bytes(content)
    manifest = Bundle.open(copy).manifest
    exported = manifest.stages[names.EXPORT]
    updated = replace(exported, outputs={name: Bundle(copy).sha256(name) for name in exported.outputs})
    manifest.with_stage(names.EXPORT, updated).save(copy)
    return copy


def with_stage(bundle: Path, stage: str, results: dict[str, Any], outputs: Sequence[str] = ()) -> None:
    """Adds a stage to a bundle's manifest, as the command of that name would."""
    Bundle.open(bundle).record(
        stage,
        inputs=[names.FP32_GRAPH],
        outputs=outputs,
        tools=(),
        settings={},
        results=results,
        seconds=0.0,
    )


def answer_in_process(bundle: Path, texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels, probabilities FP32 `[texts, labels]` and logits of ONNX Runtime here, one text at a time."""
    import onnxruntime

    opened = Bundle.open(bundle)
    session = onnxruntime.InferenceSession(str(bundle / names.FP32_GRAPH), providers=["CPUExecutionProvider"])
    rows = []
    for encoded in opened.tokenizer.encode(texts):
        ids = np.array([encoded.input_ids], dtype=np.int64)
        types = np.array([encoded.token_type_ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        rows.append(session.run(["logits"], feed)[0][0])
    logits = np.stack(rows)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return [opened.labels[index] for index in logits.argmax(axis=1)], probabilities, logits
