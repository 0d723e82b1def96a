"""Every head answers and learns like transformers' from the same folder, in both directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from bertmp.metrics.task_metrics import classification
from bertmp.model.checkpoint import load_checkpoint, save_checkpoint
from bertmp.model.config import BertConfig
from bertmp.model.heads import HEADS, Head, LossOptions, MultiLabelClassifier, Regressor, TokenClassifier
from bertmp.model.heads.fine_tuning import IGNORE_INDEX
from tests.models import batch, head, packed, small_tokenizer

TOLERANCE = 1e-5
TAGS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
SMALL = BertConfig(
    vocab_size=250,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=40,
)
CLASSES = {
    "encoder": (transformers.BertModel, ()),
    "classification": (transformers.BertForSequenceClassification, ("no", "perhaps", "yes")),
    "multi-label-classification": (transformers.BertForSequenceClassification, ("blue", "green", "red")),
    "regression": (transformers.BertForSequenceClassification, ("LABEL_0",)),
    "token-classification": (transformers.BertForTokenClassification, TAGS),
    "pretraining": (transformers.BertForPreTraining, ()),
    "masked-lm": (transformers.BertForMaskedLM, ()),
    "next-sentence": (transformers.BertForNextSentencePrediction, ()),
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def test_every_head_is_tested_here() -> None:
    assert set(CLASSES) == set(HEADS)


def config_of(task: str) -> BertConfig:
    return replace(SMALL, labels=CLASSES[task][1])


def saved(task: str, folder: Path, seed: int = 0) -> Head:
    """A head with random weights, saved in `folder`."""
    tokenizer = folder.parent / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    model = head(task, config_of(task), seed)
    save_checkpoint(folder, model, config_of(task), small_tokenizer(tokenizer))
    return model


@torch.no_grad()
def assert_same_answers(ours: Head, theirs: Any) -> None:
    """Outputs differ by no more than rounding, where there are tokens."""
    inputs = batch(SMALL.vocab_size, rows=4, length=17)
    mine = ours(**inputs)
    mine = mine if isinstance(mine, tuple) else (mine,)
    answer = theirs(**inputs)
    for name, found in zip(ours.outputs, mine, strict=True):
        expected = answer[name] if name in answer else answer["logits"]
        assert found.dtype == torch.float32
        assert found.shape == expected.shape
        # An output of zeros would agree with anything.
        assert expected.abs().max() > 0.1
        rows = inputs["attention_mask"].bool() if found.dim() == 3 else ...
        assert float((found - expected)[rows].abs().max()) <= TOLERANCE


@pytest.mark.parametrize("task", CLASSES)
def test_transformers_reads_what_we_save(task: str, tmp_path: Path) -> None:
    kind, labels = CLASSES[task]
    ours = saved(task, tmp_path / "ours")
    theirs, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert theirs.config.architectures == [kind.__name__]
    if labels:
        assert tuple(theirs.config.id2label[number] for number in range(len(labels))) == labels
        assert theirs.config.problem_type == (HEADS[task].problem or None)
    assert_same_answers(ours, theirs.eval())


@pytest.mark.parametrize("task", CLASSES)
def test_we_read_what_transformers_saves(task: str, tmp_path: Path) -> None:
    kind, labels = CLASSES[task]
    problem = {"problem_type": HEADS[task].problem} if HEADS[task].problem else {}
    named = {"id2label": dict(enumerate(labels))} if labels else {}
    theirs = kind(
        transformers.BertConfig(
            vocab_size=250,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=40,
            initializer_range=0.2,
            **named,
            **problem,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    small_tokenizer(tmp_path)

    ours = load_checkpoint(tmp_path)

    assert ours.model.task == task
    assert ours.missing_keys == ours.unexpected_keys == ()
    if labels:
        assert ours.labels == labels
    assert_same_answers(ours.model, theirs)


def targets(task: str, lengths: list[int]) -> torch.Tensor:
    """What four texts should have been answered with, padded where each token has an answer."""
    if task == "classification":
        return torch.tensor([0, 2, 1, 1])
    if task == "multi-label-classification":
        return torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]]).float()
    if task == "regression":
        return torch.tensor([0.5, -2.0, 3.25, 0.0])
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, len(TAGS), (4, max(lengths)), generator=generator)
    labels[:, 0] = IGNORE_INDEX
    labels[:, 5::3] = IGNORE_INDEX
    return labels


@pytest.mark.parametrize(
    "task", ["classification", "multi-label-classification", "regression", "token-classification"]
)
def test_the_loss_is_that_of_transformers(task: str, tmp_path: Path) -> None:
    ours = saved(task, tmp_path / "ours")
    theirs = CLASSES[task][0].from_pretrained(tmp_path / "ours").eval()
    inputs = batch(SMALL.vocab_size, rows=4, length=17)
    mask = inputs["attention_mask"].bool()
    labels = targets(task, mask.sum(1).tolist())
    padded = labels.masked_fill(~mask, IGNORE_INDEX) if task == "token-classification" else labels
    together = packed(inputs, labels=labels[mask] if task == "token-classification" else labels)
    with torch.no_grad():
        expected = float(theirs(**inputs, labels=padded).loss)
        sums, scores = ours.loss_sums(together, LossOptions()), ours.score(together)
    (count,) = ours.loss_counts(together, LossOptions())
    assert float(sums[0]) / count == pytest.approx(expected, rel=1e-5)
    assert ours.summarise(scores)["loss"] == pytest.approx(expected, rel=1e-5)


def test_class_weights_and_smoothing_weigh_words_as_torch_does(tmp_path: Path) -> None:
    model = saved("token-classification", tmp_path / "ours")
    inputs = batch(SMALL.vocab_size, rows=4, length=17)
    mask = inputs["attention_mask"].bool()
    labels = targets("token-classification", mask.sum(1).tolist())[mask]
    together = packed(inputs, labels=labels)
    options = LossOptions(label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5, 3.0, 0.1])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            model(**inputs)[mask],
            labels,
            torch.tensor(options.class_weights),
            ignore_index=IGNORE_INDEX,
            label_smoothing=0.1,
        )
        found = float(model.loss_sums(together, options)[0]) / model.loss_counts(together, options)[0]
    assert found == pytest.approx(float(expected), rel=1e-5)


class Answering(TokenClassifier):
    """A classifier whose answers are given."""

    def __init__(self, given: list[int]) -> None:
        super().__init__(replace(SMALL, labels=TAGS))
        self.given = torch.tensor(given)

    def labelled_logits(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch.targets["labels"]
        labels = labels[labels != IGNORE_INDEX]
        return torch.nn.functional.one_hot(self.given, len(TAGS)).float() * 9, labels


def test_entity_scores_count_whole_entities_of_each_sentence() -> None:
    b_per, i_per, b_loc, o = (TAGS.index(tag) for tag in ("B-PER", "I-PER", "B-LOC", "O"))
    inputs = batch(SMALL.vocab_size, rows=2, length=6)  # 6 and 3 tokens
    truth = [IGNORE_INDEX, b_per, i_per, IGNORE_INDEX, o, b_loc, IGNORE_INDEX, i_per, IGNORE_INDEX]
    model = Answering([b_per, o, o, b_loc, i_per])
    figures = model.summarise(model.score(packed(inputs, labels=torch.tensor(truth))))
    # Half of a name is no name, and a name does not go on in the next sentence.
    assert figures["accuracy"] == pytest.approx(4 / 5)
    assert (figures["precision"], figures["recall"]) == pytest.approx((2 / 3, 2 / 3))
    assert figures["f1"] == pytest.approx(2 / 3)


def test_classification_figures_are_those_of_the_answers(tmp_path: Path) -> None:
    model = saved("classification", tmp_path / "ours")
    inputs = batch(SMALL.vocab_size, rows=8, length=17)
    truth = torch.arange(8) % 3
    with torch.no_grad():
        answers = model(**inputs).argmax(-1)
        figures = model.summarise(model.score(packed(inputs, labels=truth)))
    expected = classification(answers.numpy(), truth.numpy(), 3)
    assert list(figures) == ["loss", "accuracy", "macro_f1", "matthews"]
    assert all(figures[name] == getattr(expected, name) for name in ("accuracy", "macro_f1", "matthews"))


def test_regression_scores_add_up_over_batches() -> None:
    rng = np.random.default_rng(0)
    answers, truth = rng.normal(size=40), rng.normal(size=40) + 1
    sums: dict[str, float] = {}
    for rows in np.split(np.arange(40), [7, 25]):
        a, t = answers[rows], truth[rows]
        part = {
            "examples": len(rows), "squared_error": ((a - t) ** 2).sum(), "answers": a.sum(),
            "truth": t.sum(), "answers_squared": (a**2).sum(), "truth_squared": (t**2).sum(),
            "product": (a * t).sum(),
        }  # fmt: skip
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in part.items()}
    figures = Regressor.summarise(sums)
    assert figures["pearson"] == pytest.approx(np.corrcoef(answers, truth)[0, 1])
    assert figures["mse"] == pytest.approx(((answers - truth) ** 2).mean())
    constant = {**sums, "truth": 40.0, "truth_squared": 40.0, "product": sums["answers"]}
    assert Regressor.summarise(constant)["pearson"] == 0.0


def test_multi_label_scores() -> None:
    sums = {"examples": 4, "loss": 2.0, "accuracy": 1, "right": 3, "given": 4, "true": 6}
    assert MultiLabelClassifier.summarise(sums) == pytest.approx(
        {"loss": 0.5, "accuracy": 0.25, "precision": 0.75, "recall": 0.5, "f1": 0.6}
    )
    nothing = dict.fromkeys(sums, 0) | {"examples": 4}
    assert MultiLabelClassifier.summarise(nothing)["f1"] == 0.0
