"""Checkpoints of many makes are understood, and broken ones refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertmp.errors import InputError
from bertmp.model.checkpoint import load_checkpoint
from bertmp.model.heads import EncoderOnly, SequenceClassifier


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint, to be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def test_old_names_missing_prefixes_and_extra_buffers_are_understood(folder: Path) -> None:
    before = load_checkpoint(folder).model.state_dict()

    def age(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {
            "bert."
            + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): t
            for name, t in weights.items()
        }
        return {**old, "bert.embeddings.position_ids": torch.arange(64)[None]}

    change_weights(folder, age)
    loaded = load_checkpoint(folder)
    assert loaded.new == loaded.unused == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())


def test_a_head_is_known_by_its_weights_where_the_configuration_is_silent(folder: Path) -> None:
    assert isinstance(load_checkpoint(folder).model, EncoderOnly)
    change_config(folder, architectures=None)
    change_weights(
        folder, lambda w: {**w, "classifier.weight": torch.randn(4, 32), "classifier.bias": torch.zeros(4)}
    )
    loaded = load_checkpoint(folder)
    assert isinstance(loaded.model, SequenceClassifier)
    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")


def test_a_new_head_is_drawn_from_the_seed(folder: Path) -> None:
    first, again, other = (load_checkpoint(folder, "classification", ("a", "b"), seed) for seed in (1, 1, 2))
    weights = [loaded.model.state_dict()["classifier.weight"] for loaded in (first, again, other)]
    assert first.new == ("classifier.weight", "classifier.bias")
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_configuration_alone_starts_from_random_weights(folder: Path) -> None:
    loaded = load_checkpoint(folder / "config.json", "classification", ("a", "b"))
    assert set(loaded.new) == set(loaded.model.state_dict())
    words = loaded.model.bert.embeddings.word_embeddings.weight.detach()
    assert float(words.std()) == pytest.approx(0.02, rel=0.05)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop_layer(folder: Path) -> None:
    change_weights(folder, lambda w: {k: v for k, v in w.items() if "layer.1.output.dense" not in k})


BROKEN = {
    "no config.json": lambda f: (f / "config.json").unlink(),
    "not a JSON file": lambda f: (f / "config.json").write_text("{"),
    "the model is no BERT but 'roberta'": lambda f: change_config(f, model_type="roberta"),
    "the weights are no BERT's": lambda f: change_weights(f, lambda w: {"wte.weight": torch.zeros(3)}),
    "damaged weights": truncate,
    "no model.safetensors": lambda f: (f / "model.safetensors").unlink(),
    "the weights have 30522 tokens, config.json says 30600": lambda f: change_config(f, vocab_size=30600),
    "the tokenizer has 30522 tokens, the model 30000": lambda f: change_config(f, vocab_size=30000),
    "the weights lack bert.encoder.layer.1.output.dense": drop_layer,
    "bert.embeddings.position_embeddings.weight is [64, 32] in the weights and [32, 32] by config.json": (
        lambda f: change_config(f, max_position_embeddings=32)
    ),
    "hidden_size 32 does not divide into 5 heads": lambda f: change_config(f, num_attention_heads=5),
    "unknown activation 'swish'": lambda f: change_config(f, hidden_act="swish"),
    "num_hidden_layers is -1": lambda f: change_config(f, num_hidden_layers=-1),
    "no tokenizer": lambda f: [(f / name).unlink() for name in ("tokenizer.json", "vocab.txt")],
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(message: str, folder: Path) -> None:
    BROKEN[message](folder)
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder)
    text = str(caught.value)
    assert text.startswith(message)
    assert str(folder) in text
    assert "\n" not in text


def test_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nothing")
