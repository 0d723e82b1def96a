"""Heads on the pooled state of a text or text pair (Devlin et al. 2019, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from bertmp.metrics.task_metrics import f1_figures
from bertmp.model.batch import Batch
from bertmp.model.heads.head import LinearHead, LossOptions, cross_entropy_count, cross_entropy_sum


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
        return {
            "examples": float(len(batch)),
            "loss": float(self.loss_sum(logits, labels, LossOptions())),
            "accuracy": float((logits.argmax(-1) == labels).sum()),
        }


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
        return {
            "loss": sums["loss"] / sums["examples"],
            "accuracy": sums["accuracy"] / sums["examples"],
            **f1_figures(sums["right"], sums["given"], sums["true"]),
        }


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
        spread = (sums["answers_squared"] - sums["answers"] ** 2 / n) * (
            sums["truth_squared"] - sums["truth"] ** 2 / n
        )
        pearson = covariance / math.sqrt(spread) if spread > 0 else 0.0
        return {"loss": mse, "mse": mse, "pearson": max(-1.0, min(1.0, pearson))}
