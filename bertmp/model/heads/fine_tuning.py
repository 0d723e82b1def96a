"""Heads on the pooled state of a text or text pair (Devlin et al. 2019, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.nn import functional as F

from bertmp.model.bert import Padded
from bertmp.model.heads.head import (
    LinearHead,
    LossOptions,
    cross_entropy_count,
    cross_entropy_sum,
    label_scores,
)
from bertmp.model.packed import Batch


class SequenceHead(LinearHead):
    """One row of logits per sequence; targets: `labels`."""

    architecture = "BertForSequenceClassification"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, labels]`."""
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self.classify(pooled)

    def logits(self, batch: Batch) -> Tensor:
        """Logits of a packed batch, FP32 `[batch, labels]`."""
        pooled, _ = self.encode_at(batch)
        return self.classify(pooled)

    def loss_sums(self, batch: Batch, options: LossOptions) -> Tensor:
        return self.loss_sum(self.logits(batch), batch.targets["labels"], options)[None]

    @staticmethod
    def loss_sum(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        """The summed loss in FP32; `[batch, labels]` and the targets → a scalar."""
        raise NotImplementedError


class SequenceClassifier(SequenceHead):
    """Single-label classification; targets: `labels`, INT64 `[batch]`."""

    task = "classification"
    losses = ("label",)
    problem = "single_label_classification"
    classes = True
    loss_sum = staticmethod(cross_entropy_sum)

    def loss_counts(self, batch: Batch, options: LossOptions) -> list[float]:
        return [cross_entropy_count(batch.targets["labels"], options)]

    def score(self, batch: Batch) -> dict[str, float]:
        return {"examples": float(len(batch)), **label_scores(self.logits(batch), batch.targets["labels"])}


class MultiLabelClassifier(SequenceHead):
    """Multi-label classification; targets: `labels`, FP32 `[batch, labels]`, 1 for labels that apply.

    A label is predicted if its logit is above 0, which is a probability above one half.
    """

    task = "multi-label-classification"
    losses = ("label",)
    problem = "multi_label_classification"
    classes = True

    @staticmethod
    def loss_sum(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        """Binary cross-entropy summed over all labels in FP32; `[batch, labels]` twice → a scalar.

        Label smoothing moves each target towards one half; class weights weight the labels' terms.
        """
        smooth = options.label_smoothing
        smoothed = labels.float() * (1.0 - smooth) + 0.5 * smooth
        weights = logits.new_tensor(options.class_weights) if options.class_weights else None
        return F.binary_cross_entropy_with_logits(logits.float(), smoothed, weights, reduction="sum")

    def loss_counts(self, batch: Batch, options: LossOptions) -> list[float]:
        weight = sum(options.class_weights) if options.class_weights else len(self.config.labels)
        return [float(len(batch) * weight)]

    def score(self, batch: Batch) -> dict[str, float]:
        logits, labels = self.logits(batch), batch.targets["labels"].bool()
        given = logits > 0
        return {
            "examples": float(len(batch)),
            "loss": float(self.loss_sum(logits, labels, LossOptions())) / labels.shape[1],
            "accuracy": float((given == labels).all(-1).sum()),
            "right": float((given & labels).sum()),
            "given": float(given.sum()),
            "true": float(labels.sum()),
        }

    @staticmethod
    def summarise(sums: Mapping[str, float]) -> dict[str, float]:
        """Loss, exact-match accuracy, and micro-averaged precision, recall and F1 over all labels."""
        means = {name: sums[name] / sums["examples"] for name in ("loss", "accuracy")}
        return {**means, **f1_figures(sums["right"], sums["given"], sums["true"])}


class Regressor(SequenceHead):
    """Regression; targets: `labels`, FP32 `[batch]`. Its configuration has one unnamed label."""

    task = "regression"
    losses = ("squared_error",)
    problem = "regression"

    @staticmethod
    def loss_sum(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        """Summed squared error in FP32; `[batch, 1]` and `[batch]` → a scalar. No option applies."""
        return F.mse_loss(logits.float().squeeze(-1), labels.float(), reduction="sum")

    def score(self, batch: Batch) -> dict[str, float]:
        answers, truth = self.logits(batch).squeeze(-1).double(), batch.targets["labels"].double()
        return {
            "examples": float(len(batch)),
            "squared_error": float((answers - truth).square().sum()),
            "answers": float(answers.sum()),
            "truth": float(truth.sum()),
            "answers_squared": float(answers.square().sum()),
            "truth_squared": float(truth.square().sum()),
            "product": float((answers * truth).sum()),
        }

    @staticmethod
    def summarise(sums: Mapping[str, float]) -> dict[str, float]:
        """Mean squared error and Pearson's correlation, which is 0 if predictions or targets are constant."""
        n = sums["examples"]
        mse = sums["squared_error"] / n
        covariance = sums["product"] - sums["answers"] * sums["truth"] / n
        spread = sums["answers_squared"] - sums["answers"] ** 2 / n
        spread *= sums["truth_squared"] - sums["truth"] ** 2 / n
        pearson = covariance / math.sqrt(spread) if spread > 0 else 0.0
        return {"loss": mse, "mse": mse, "pearson": max(-1.0, min(1.0, pearson))}


IGNORE_INDEX = -100
"""The target of tokens that are not the first subword of a word; torch's and Hugging Face's default."""


class TokenClassifier(LinearHead):
    """Token classification; targets: `labels`, INT64 `[tokens]`, `IGNORE_INDEX` for unlabelled tokens."""

    task = "token-classification"
    architecture = "BertForTokenClassification"
    losses = ("label",)
    classes = True
    pooling = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, length, labels]`."""
        hidden = self.bert.encode(input_ids, token_type_ids, Padded.of(attention_mask))
        return self.classify(hidden)

    def labelled_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits FP32 `[words, labels]` and targets INT64 `[words]` of the tokens that have a label."""
        hidden = self.encode(batch)
        labels = batch.targets["labels"]
        words = (labels != IGNORE_INDEX).nonzero().squeeze(-1)
        return self.classify(hidden.index_select(0, words)), labels.index_select(0, words)

    def loss_sums(self, batch: Batch, options: LossOptions) -> Tensor:
        return cross_entropy_sum(*self.labelled_logits(batch), options)[None]

    def loss_counts(self, batch: Batch, options: LossOptions) -> list[float]:
        labels = batch.targets["labels"]
        return [cross_entropy_count(labels[labels != IGNORE_INDEX], options)]

    def score(self, batch: Batch) -> dict[str, float]:
        logits, labels = self.labelled_logits(batch)
        scores = {"words": float(len(labels)), **label_scores(logits, labels)}
        if mark_entities(self.config.labels):
            scores.update(self._entity_scores(batch, logits.argmax(-1)))
        return scores

    def _entity_scores(self, batch: Batch, given: Tensor) -> dict[str, float]:
        """Numbers of entities: correct in type and boundaries, predicted, and true."""
        names = self.config.labels
        right = answered = wanted = 0
        answers = iter(given.tolist())
        for targets in batch.targets["labels"].cpu().split(list(batch.lengths)):
            truth = [names[label] for label in targets.tolist() if label != IGNORE_INDEX]
            found = entities([names[next(answers)] for _ in truth])
            true = entities(truth)
            right, answered, wanted = right + len(found & true), answered + len(found), wanted + len(true)
        return {"right": float(right), "given": float(answered), "true": float(wanted)}

    @staticmethod
    def summarise(sums: Mapping[str, float]) -> dict[str, float]:
        """Loss and accuracy per word; with entity labels also precision, recall and F1 of the entities."""
        figures = {name: sums[name] / max(sums["words"], 1.0) for name in ("loss", "accuracy")}
        if "true" in sums:
            figures.update(f1_figures(sums["right"], sums["given"], sums["true"]))
        return figures


Entity = tuple[str, int, int]
"""Type, first word, word after the last."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one sentence, from BIO tags; IOB1, BIOES and BILOU are read as well.

    Lenient like the CoNLL evaluation: an `I-` without a beginning begins an entity, and so does one of
    another type than the entity before it.
    """
    found: set[Entity] = set()
    kind, start = "", 0
    for place, tag in enumerate((*tags, "O")):
        prefix, _, name = tag.partition("-")
        inside = prefix in ("I", "E", "L") and bool(kind) and name == kind
        if not inside:
            if kind:
                found.add((kind, start, place))
            kind, start = (name, place) if prefix in _PREFIXES else ("", place)
        if kind and prefix in ("E", "L", "S", "U"):
            found.add((kind, start, place + 1))
            kind = ""
    return found


_PREFIXES = ("B", "I", "E", "L", "S", "U")


def mark_entities(labels: Iterable[str]) -> bool:
    """Whether labels are tags of entities, such as `B-PER` and `O`, and not, for example, parts of speech."""
    marked = [label.partition("-") for label in labels if label != "O"]
    return bool(marked) and all(prefix in _PREFIXES and kind for prefix, _, kind in marked)


def f1_figures(right: float, given: float, true: float) -> dict[str, float]:
    """Precision, recall and their harmonic mean; 0 where nothing was given or there was nothing to find."""
    return {
        "precision": right / given if given else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (given + true) if given + true else 0.0,
    }
