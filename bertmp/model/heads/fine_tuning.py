"""Heads on the pooled state of a text or text pair (Devlin et al. 2019, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from bertmp.metrics.spans import has_entity_tags, span_counts
from bertmp.metrics.task_metrics import (
    class_figures,
    class_sums,
    multi_label_figures,
    regression_figures,
    token_figures,
)
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
        logits, labels = self.logits(batch), batch.targets["labels"]
        counts = class_sums(logits.argmax(-1).cpu().numpy(), labels.cpu().numpy())
        return {"examples": float(len(batch)), **label_scores(logits, labels), **counts}

    @staticmethod
    def summarise(sums: Mapping[str, float]) -> dict[str, float]:
        """Loss, accuracy, macro F1 and Matthews' correlation."""
        means = {name: sums[name] / sums["examples"] for name in ("loss", "accuracy")}
        return {**means, **class_figures(sums)}


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

    summarise = staticmethod(multi_label_figures)


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

    summarise = staticmethod(regression_figures)


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
        if has_entity_tags(self.config.labels):
            scores.update(self._entity_scores(batch, logits.argmax(-1)))
        return scores

    def _entity_scores(self, batch: Batch, given: Tensor) -> dict[str, float]:
        """Numbers of entities: correct in type and boundaries, predicted, and true."""
        names = self.config.labels
        answers = iter(given.tolist())
        targets = (one.tolist() for one in batch.targets["labels"].cpu().split(list(batch.lengths)))
        truth = [[names[label] for label in row if label != IGNORE_INDEX] for row in targets]
        answered = [[names[next(answers)] for _ in row] for row in truth]
        counts = span_counts(answered, truth).sum(0).tolist()
        return dict(zip(("right", "given", "true"), map(float, counts), strict=True))

    summarise = staticmethod(token_figures)
