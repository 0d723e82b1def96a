"""Checkpoints of many makes are understood, and broken ones refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer
from bertmp.model.checkpoint import load_checkpoint
from bertmp.model.heads import EncoderOnly, SequenceClassifier
from tests.models import batch, small_tokenizer


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
    assert loaded.missing_keys == loaded.unexpected_keys == ()
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
    assert first.missing_keys == ("classifier.weight", "classifier.bias")
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_configuration_alone_starts_from_random_weights(folder: Path) -> None:
    loaded = load_checkpoint(folder / "config.json", "classification", ("a", "b"))
    assert set(loaded.missing_keys) == set(loaded.model.state_dict())
    words = loaded.model.bert.embeddings.word_embeddings.weight.detach()
    assert float(words.std()) == pytest.approx(0.02, rel=0.05)


def as_pickle(folder: Path, wrap: Any = dict) -> None:
    """Turns the weights into the file that checkpoints had before safetensors."""
    torch.save(wrap(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path) -> None:
    """Spreads the weights over two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in (0, 1):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        part = {key: weights[key] for key in sorted(weights)[number::2]}
        save_file(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FORMS = {
    "legacy pickle": as_pickle,
    "a training script's pickle": lambda f: as_pickle(f, lambda w: {"model": w, "epoch": 3}),
    "names of a wrapped model": lambda f: as_pickle(
        f, lambda w: {f"module.bert.{name}": tensor for name, tensor in w.items()}
    ),
    "shards": as_shards,
    "half precision": lambda f: change_weights(f, lambda w: {name: t.half() for name, t in w.items()}),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form(form: str, folder: Path) -> None:
    before = load_checkpoint(folder).model.state_dict()
    FORMS[form](folder)
    loaded = load_checkpoint(folder)
    assert loaded.missing_keys == loaded.unexpected_keys == ()
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, before[name], atol=1e-3 if form == "half precision" else 0), name


class Trap:
    """Unpickling it runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    as_pickle(folder, lambda w: {**w, "trap": Trap(tmp_path / "sprung")})
    with pytest.raises(InputError, match="holds more than weights"):
        load_checkpoint(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_broken_pickle_and_one_without_weights_are_refused(folder: Path) -> None:
    as_pickle(folder, lambda w: list(w.values()))
    with pytest.raises(InputError, match="not a dictionary of weights"):
        load_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"damaged weights|more than weights"):
        load_checkpoint(folder)


def test_a_missing_shard_and_one_from_elsewhere_are_refused(folder: Path) -> None:
    as_shards(folder)
    path = folder / "model.safetensors.index.json"
    (folder / "model-00002-of-00002.safetensors").rename(folder.parent / "model-00002-of-00002.safetensors")
    with pytest.raises(InputError, match=r"no model-00002-of-00002\.safetensors, which the index names"):
        load_checkpoint(folder)
    path.write_text(path.read_text().replace("model-00002", "../model-00002"))
    with pytest.raises(InputError, match="which the index names"):
        load_checkpoint(folder)


def with_decoder(scale: float) -> Any:
    """Adds pre-training's heads, and the decoder once more under its own name."""

    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        words = weights["embeddings.word_embeddings.weight"]
        return {
            **{f"bert.{name}": tensor for name, tensor in weights.items()},
            "cls.predictions.transform.dense.weight": torch.randn(32, 32),
            "cls.predictions.transform.dense.bias": torch.randn(32),
            "cls.predictions.transform.LayerNorm.gamma": torch.ones(32),
            "cls.predictions.transform.LayerNorm.beta": torch.zeros(32),
            "cls.predictions.decoder.weight": words * scale,
            "cls.predictions.decoder.bias": torch.randn(len(words)),
            "cls.seq_relationship.weight": torch.randn(2, 32),
            "cls.seq_relationship.bias": torch.randn(2),
        }

    return change


def test_a_decoder_tied_to_the_embeddings_is_read_once(folder: Path) -> None:
    change_config(folder, architectures=None)
    change_weights(folder, with_decoder(1.0))
    loaded = load_checkpoint(folder)
    assert loaded.model.task == "pretraining"
    assert loaded.missing_keys == loaded.unexpected_keys == ()
    bias = load_file(folder / "model.safetensors")["cls.predictions.decoder.bias"]
    assert torch.equal(loaded.model.state_dict()["cls.predictions.bias"], bias)


def test_a_decoder_of_its_own_is_refused_where_it_would_answer(folder: Path) -> None:
    change_config(folder, architectures=None)
    change_weights(folder, with_decoder(1.5))
    with pytest.raises(InputError, match="is not tied to"):
        load_checkpoint(folder)
    assert "cls.predictions.decoder.weight" in load_checkpoint(folder, "encoder").unexpected_keys


def add(folder: Path, drop: str = "", **weights: torch.Tensor) -> None:
    """Adds weights, `__` standing for a dot, and drops those whose names begin with `drop`."""
    named = {name.replace("__", "."): tensor for name, tensor in weights.items()}
    change_weights(
        folder, lambda w: {k: t for k, t in w.items() if not (drop and k.startswith(drop))} | named
    )


def classifier(width: int) -> dict[str, torch.Tensor]:
    return {"classifier__weight": torch.randn(width, 32), "classifier__bias": torch.zeros(width)}


SILENT = {
    "token-classification": lambda f: add(f, "pooler.", **classifier(5)),
    "regression": lambda f: add(f, **classifier(1)),
    "multi-label-classification": lambda f: [
        add(f, **classifier(3)),
        change_config(f, problem_type="multi_label_classification"),
    ],
    "next-sentence": lambda f: add(
        f, cls__seq_relationship__weight=torch.randn(2, 32), cls__seq_relationship__bias=torch.zeros(2)
    ),
}


@pytest.mark.parametrize("task", SILENT)
def test_every_head_is_known_by_its_weights(task: str, folder: Path) -> None:
    change_config(folder, architectures=None)
    SILENT[task](folder)
    loaded = load_checkpoint(folder)
    assert loaded.model.task == task
    assert loaded.missing_keys == loaded.unexpected_keys == ()


def test_a_task_overrides_what_the_checkpoint_says(folder: Path) -> None:
    add(folder, **classifier(4))
    change_config(folder, architectures=["BertForSequenceClassification"])
    loaded = load_checkpoint(folder, "token-classification")
    assert loaded.model.task == "token-classification"
    assert loaded.missing_keys == ()
    assert loaded.unexpected_keys == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")


def test_labels_that_contradict_the_classifier_give_way_to_its_width(folder: Path) -> None:
    add(folder, **classifier(4))
    change_config(
        folder,
        architectures=["BertForSequenceClassification"],
        id2label={"0": "bad", "1": "good"},
        label2id={"bad": 0, "good": 1},
        num_labels=2,
    )
    loaded = load_checkpoint(folder)
    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert loaded.missing_keys == ()


def test_a_classifier_of_other_labels_is_initialised_again(folder: Path) -> None:
    add(folder, **classifier(2))
    change_config(folder, architectures=["BertForSequenceClassification"], id2label={"0": "bad", "1": "good"})
    kept = load_checkpoint(folder, "classification", ("bad", "good"))
    assert kept.missing_keys == ()
    drawn = load_checkpoint(folder, "classification", ("cat", "dog"))
    assert drawn.missing_keys == ("classifier.weight", "classifier.bias")
    assert drawn.unexpected_keys == ("classifier.bias", "classifier.weight")


def test_a_head_that_is_not_ours_is_named(folder: Path) -> None:
    change_config(folder, architectures=["BertForQuestionAnswering"])
    add(folder, qa_outputs__weight=torch.randn(2, 32), qa_outputs__bias=torch.zeros(2))
    with pytest.raises(InputError, match="BertForQuestionAnswering, which is not supported"):
        load_checkpoint(folder)
    assert load_checkpoint(folder, "encoder").unexpected_keys == ("qa_outputs.bias", "qa_outputs.weight")


def test_sizes_that_the_configuration_does_not_give_come_from_the_weights(folder: Path) -> None:
    expected = load_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": config["num_attention_heads"]}))
    loaded = load_checkpoint(folder)
    inputs = batch(30522)
    with torch.no_grad():
        assert torch.equal(loaded.model(**inputs)[1], expected.model(**inputs)[1])
    assert loaded.inferred == {
        name: config[name]
        for name in (
            *("vocab_size", "hidden_size", "max_position_embeddings", "type_vocab_size"),
            *("intermediate_size", "num_hidden_layers"),
        )
    }
    assert "hidden_size 32" in loaded.notes()[0]


def test_the_number_of_heads_is_assumed_and_noted(folder: Path, minilm: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{}")
    loaded = load_checkpoint(folder)
    assert loaded.config.num_attention_heads == 1
    assert any(line.startswith("assumed: 1 attention heads") for line in loaded.notes())
    copy = Path(shutil.copytree(minilm, tmp_path / "minilm"))
    (copy / "config.json").write_text("{}")
    assert load_checkpoint(copy).config.num_attention_heads == 12
    assert load_checkpoint(copy).config.num_hidden_layers == 6


@pytest.mark.parametrize(("extra", "same"), [((), True), (("Apple",), False)])
def test_a_vocabulary_alone_shows_whether_text_is_lower_cased(
    extra: tuple[str, ...], same: bool, tmp_path: Path
) -> None:
    tokenizer = small_tokenizer(tmp_path, ("apple", *extra))
    lower, upper = tokenizer.encode(["apple", "Apple"])
    assert (lower.input_ids == upper.input_ids) == same
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    lower, upper = Tokenizer.load(tmp_path).encode(["apple", "Apple"])
    assert lower.input_ids == upper.input_ids


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def drop_layer(folder: Path) -> None:
    change_weights(folder, lambda w: {k: v for k, v in w.items() if "layer.1.output.dense" not in k})


BROKEN = {
    "no config.json": lambda f: (f / "config.json").unlink(),
    "not a JSON file": lambda f: (f / "config.json").write_text("{"),
    "the model is not a BERT but 'roberta'": lambda f: change_config(f, model_type="roberta"),
    "the weights are not a BERT's": lambda f: change_weights(f, lambda w: {"wte.weight": torch.zeros(3)}),
    "damaged weights": truncate,
    "no model.safetensors": lambda f: (f / "model.safetensors").unlink(),
    "the weights have 30522 tokens, config.json says 30600": lambda f: change_config(f, vocab_size=30600),
    "the tokenizer has 30522 tokens, the model 30000": lambda f: change_config(f, vocab_size=30000),
    "the weights lack bert.encoder.layer.1.output.dense": drop_layer,
    "bert.embeddings.position_embeddings.weight is [64, 32] in the weights and [32, 32] by config.json": (
        lambda f: change_config(f, max_position_embeddings=32)
    ),
    "hidden_size 32 does not divide into 5 heads": lambda f: change_config(f, num_attention_heads=5),
    "unknown activation 'mish'": lambda f: change_config(f, hidden_act="mish"),
    "pad_token_id is 99999": lambda f: change_config(f, pad_token_id=99999),
    "layer_norm_eps is 'small'": lambda f: change_config(f, layer_norm_eps="small"),
    "classifier_dropout is 2": lambda f: change_config(f, classifier_dropout=2),
    "the checkpoint's regression has 3 outputs, only one is supported": lambda f: [
        add(f, **classifier(3)),
        change_config(f, architectures=["BertForSequenceClassification"], problem_type="regression"),
    ],
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


@pytest.mark.parametrize("prefix", ["model.", "module.model._orig_mod.", "0.auto_model.", "encoder.bert."])
def test_prefixes_of_wrappers_are_left_out(folder: Path, prefix: str) -> None:
    expected = load_checkpoint(folder, "encoder").model.state_dict()
    change_weights(folder, lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()})
    loaded = load_checkpoint(folder, "encoder")
    assert not loaded.missing_keys
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())


def test_pruned_heads_are_refused_by_their_name(folder: Path) -> None:
    change_config(folder, pruned_heads={"0": [1]})
    with pytest.raises(InputError, match="pruned_heads"):
        load_checkpoint(folder)


def test_a_padding_id_of_null_is_0(folder: Path) -> None:
    change_config(folder, pad_token_id=None)
    assert load_checkpoint(folder).config.pad_token_id == 0


def test_weights_that_are_not_numbers_are_noted(folder: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"

    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        next(tensor for key, tensor in weights.items() if key.endswith(name))[0, 0] = float("nan")
        return weights

    assert not any("NaN" in line for line in load_checkpoint(folder).notes())
    change_weights(folder, spoil)
    note = load_checkpoint(folder).notes()[-1]
    assert note == f"NaN or infinite weights, which make the answers NaN: bert.{name}"
