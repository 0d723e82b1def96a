"""Token classification, regression and several labels a text: from data files to checkpoints."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from bertmp import train
from bertmp.core.errors import InputError
from bertmp.data.sentences import read_sentences
from bertmp.model.heads.fine_tuning import IGNORE_INDEX
from bertmp.training.tasks import READERS, Task
from bertmp.training.train_options import TrainOptions
from tests.conftest import RunBertmp
from tests.models import small_tokenizer

WORDS = ("anna", "peter", "paris", "tokyo", "sees", "likes", "the", "good", "bad", "great", "awful", "so")
VALUE = {"good": 1.0, "great": 2.0, "bad": -1.0, "awful": -2.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `config.json` for a start from random weights, beside a small vocabulary."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = small_tokenizer(folder, WORDS)
    sizes = {
        "vocab_size": tokenizer.vocabulary_size, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 24,
        "initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder / "config.json"


def learn(task: str, data: Path, model: Path, out: Path, **options: Any) -> dict[str, float]:
    """Trains on a file until it is known by heart; returns what the checkpoint scores on it."""
    options = {"epochs": 6, "batch_size": 16, "learning_rate": 5e-3, **options}
    result = train(task, data, model, out, eval_data=data, eval_every=1000, precision="fp32", **options)
    assert result.evaluation is not None
    return result.evaluation.figures


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def sentences() -> list[list[tuple[str, str]]]:
    """Sentences about people and places; a person may have a second name that is known by its place."""
    draw = random.Random(0)
    made = []
    for _ in range(120):
        second = [("xyz", "I-PER")] if draw.random() < 0.5 else []
        person = [(draw.choice(("anna", "peter")), "B-PER"), *second]
        place = (draw.choice(("paris", "tokyo")), "B-LOC")
        made.append([*person, (draw.choice(("sees", "likes")), "O"), place])
    return made


def test_token_classification_learns_entities(model: Path, tmp_path: Path) -> None:
    lines = ["\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences()]
    data = write(tmp_path / "ner.tsv", "\n\n".join(lines) + "\n")
    figures = learn("token-classification", data, model, tmp_path / "run")
    assert set(figures) == {"loss", "accuracy", "precision", "recall", "f1"}
    assert figures["f1"] > 0.95
    opened = transformers.BertForTokenClassification.from_pretrained(tmp_path / "run" / "final")
    assert list(opened.config.label2id) == ["B-LOC", "B-PER", "I-PER", "O"]


def test_regression_learns_numbers(model: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [draw.choices(list(VALUE), k=2) for _ in range(120)]
    data = write(
        tmp_path / "data.tsv", "".join(f"{sum(map(VALUE.get, row)):.1f}\t{' '.join(row)}\n" for row in rows)
    )
    figures = learn("regression", data, model, tmp_path / "run")
    assert set(figures) == {"loss", "mse", "pearson"}
    assert figures["pearson"] > 0.95
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert (config["problem_type"], len(config["id2label"])) == ("regression", 1)


def test_several_labels_a_text_are_learned(model: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [draw.sample(("good", "bad", "so", "the"), draw.randrange(1, 4)) for _ in range(150)]
    data = tmp_path / "data.jsonl"
    write(
        data,
        "".join(
            json.dumps({"text": " ".join(row), "label": [word for word in row if word in VALUE]}) + "\n"
            for row in rows
        ),
    )
    figures = learn("classification", data, model, tmp_path / "run", multi_label=True)
    assert set(figures) == {"loss", "accuracy", "precision", "recall", "f1"}
    assert figures["f1"] > 0.95
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final")
    assert opened.config.problem_type == "multi_label_classification"
    assert list(opened.config.label2id) == ["bad", "good"]


def read(task: str, data: Path, eval_data: Path | None = None, **options: Any) -> Task:
    settings = TrainOptions(task, data, data, data, eval_data=eval_data, **options)
    return READERS[task](settings)


def test_labels_of_a_text_are_parted_in_every_kind_of_file(model: Path, tmp_path: Path) -> None:
    files = {
        "data.jsonl": '{"text": "a", "label": ["x", "y"]}\n{"text": "b"}\n{"text": "c", "label": "y"}\n',
        "plain.tsv": "x,y\ta\n\tb\ny\tc\n",
        "named.tsv": "text\tlabel\na\ty, x\nb\t\nc\ty\n",
        "data.csv": 'text,label\na,"x,y"\nb,\nc,y\n',
    }
    tokenizer = small_tokenizer(tmp_path)
    for name, content in files.items():
        task = read("classification", write(tmp_path / name, content), multi_label=True)
        assert task.labels == ("x", "y")
        assert task.class_counts == [1, 2]
        batch = task.encode(tokenizer)[0].batch(np.arange(3), 0)
        assert batch.targets["labels"].tolist() == [[1, 1], [0, 0], [0, 1]], name
    other = write(tmp_path / "other.tsv", "a,1; b\tone\nb\ttwo\n")
    assert read("classification", other, multi_label=True, label_separator=";").labels == ("a,1", "b")


def test_each_word_is_answered_at_its_first_piece(tmp_path: Path) -> None:
    data = write(tmp_path / "data.txt", "Anna B-PER\nxy I-PER\nsees O\n")
    task = read("token-classification", data)
    tokenizer = small_tokenizer(tmp_path, WORDS)
    encoded, _ = task.encode(tokenizer)
    batch = encoded.batch(np.zeros(2, dtype=np.int64), 0)
    b, i, o = (task.labels.index(tag) for tag in ("B-PER", "I-PER", "O"))  # type: ignore[union-attr]
    assert batch.targets["labels"].tolist() == [IGNORE_INDEX, b, i, IGNORE_INDEX, o, IGNORE_INDEX] * 2
    assert len(batch.input_ids) == 12
    assert task.class_counts == [1, 1, 1]
    tokenizer.max_length = 4  # [CLS] anna x [SEP]
    (cut, _) = task.encode(tokenizer)
    assert cut.truncated == 1
    assert cut.batch(np.zeros(1, dtype=np.int64), 0).targets["labels"].tolist() == [
        IGNORE_INDEX,
        b,
        i,
        IGNORE_INDEX,
    ]


CONLL = (
    "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\r\n. . O O\r\n"
)
SENTENCES = ([["EU", "rejects"], ["Peter", "."]], [["B-ORG", "O"], ["B-PER", "O"]])


def test_sentences_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"tokens": w, "labels": t} for w, t in zip(*SENTENCES, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    write(tmp_path / "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "data.conll", CONLL)
    write(tmp_path / "data.tsv", "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n.\tO\n")
    for name in ("data.parquet", "data.jsonl", "data.conll", "data.tsv"):
        found = read_sentences(tmp_path / name)
        assert (found.words, found.labels) == SENTENCES, name
    renamed = [{"words": row["tokens"], "ner": [0, 1]} for row in rows]
    data = write(tmp_path / "other.jsonl", "".join(json.dumps(row) + "\n" for row in renamed))
    assert read("token-classification", data, text_column="words", label_column="ner").labels == ("0", "1")


def test_a_file_that_is_read_as_conll_is_said_to_be(tmp_path: Path) -> None:
    said: list[str] = []
    data = write(tmp_path / "data.txt", CONLL)
    read("token-classification", data, eval_data=data, progress=lambda message, *_: said.append(message))
    assert said == [f"{data}: read as CoNLL, 2 sentences"] * 2


Bad = tuple[str, str, str, dict[str, Any]]
BAD: dict[str, Bad] = {
    "the label 'high' is not a number": ("regression", "data.tsv", "1.5\ta\nhigh\tb\n", {}),
    "the label 'nan' is not a number": ("regression", "data.tsv", "nan\ta\n", {}),
    "the label '1e60' is not a number": ("regression", "data.tsv", "1e60\ta\n", {}),
    "a word without a label": ("token-classification", "data.txt", "Anna\tB-PER\nsees\n", {}),
    "a label of several words: 'What is an atom ?'": (
        "token-classification", "data.tsv", "DESC\tWhat is an atom ?\n", {},
    ),
    "150 different labels in 150 places, such as '0.01'": (
        "classification", "data.tsv", "".join(f"{n / 100}\tt\n" for n in range(1, 151)), {},
    ),
    "2 tokens and 1 labels": (
        "token-classification", "data.jsonl", '{"tokens": ["a", "b"], "labels": ["O"]}', {},
    ),
    "tokens is not a list": ("token-classification", "data.jsonl", '{"tokens": "a", "labels": "O"}', {}),
    "no labels": ("token-classification", "data.jsonl", '{"tokens": ["a"]}', {}),
    "None among the labels": (
        "token-classification", "data.jsonl", '{"tokens": ["a"], "labels": [null]}', {},
    ),
    "one label only: 'O'": ("token-classification", "data.txt", "a O\nb O\n", {}),
    "the data file has no sentences": ("token-classification", "data.txt", "\n\n", {}),
    "unknown kind of data file '.csv'": ("token-classification", "data.csv", "a,O\n", {}),
    "no text has a label": (
        "classification", "data.jsonl", '{"text": "a", "label": []}', {"multi_label": True},
    ),
    "the label 'a,b' holds the separator ','": (
        "classification", "data.jsonl", '{"text": "a", "label": ["a,b"]}', {"multi_label": True},
    ),
    "label is not text": ("classification", "data.jsonl", '{"text": "a", "label": ["x"]}', {}),
    "regression has no --multi-label": ("regression", "data.tsv", "1\ta\n", {"multi_label": True}),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_labels_that_do_not_fit_the_task_are_refused(message: str, tmp_path: Path) -> None:
    task, name, content, options = BAD[message]
    with pytest.raises(InputError) as caught:
        read(task, write(tmp_path / name, content), **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


UNSEEN: dict[str, tuple[str, Callable[[str], str], dict[str, Any]]] = {
    "token-classification": ("data.txt", lambda label: f"a {label}\nb O\n", {}),
    "classification": ("data.tsv", lambda label: f"a,{label}\tone\n\ttwo\n", {"multi_label": True}),
}


@pytest.mark.parametrize("task", UNSEEN)
def test_a_label_that_training_never_saw(task: str, tmp_path: Path) -> None:
    name, content, options = UNSEEN[task]
    data, test = write(tmp_path / name, content("b")), write(tmp_path / f"test.{name}", content("NEW"))
    with pytest.raises(InputError, match="the label 'NEW' never occurs in the training data"):
        read(task, data, test, **options)


def test_the_command_says_it_in_one_line(model: Path, tmp_path: Path, run_bertmp: RunBertmp) -> None:
    data = write(tmp_path / "data.tsv", "0.5\tone\nmuch\ttwo\n")
    done = run_bertmp("train", "regression", "--data", data, "--model", model, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: the label 'much' is not a number ({data}, line 2): "
        "give each text a number, or train classification\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_head_goes_on_from_its_own_checkpoint(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.txt", "anna B-PER\nsees O\n")
    options: dict[str, Any] = {"precision": "fp32", "epochs": 1}
    first = train("token-classification", data, model, tmp_path / "first", **options).checkpoint
    second = train("token-classification", data, first, tmp_path / "second", learning_rate=1e-9, **options)
    weights = [
        transformers.BertForTokenClassification.from_pretrained(folder).classifier.weight
        for folder in (first, second.checkpoint)
    ]
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
