"""Answers about a text or a pair of them (Devlin et al. 2019, section 4.1): a layer on the pooled state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertmp.model.batch import Batch
from bertmp.model.config import BertConfig
from bertmp.model.heads.head import Head, LossOptions


class SequenceHead(Head):
    """Some numbers a text: what classification and regression share."""

    architecture = "BertForSequenceClassification"
    outputs = ("logits",)
    own_keys = ("classifier.",)

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, labels]`."""
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self._classify(pooled)

    def answer(self, batch: Batch) -> Tensor:
        """Logits of a packed batch, FP32 `[batch, labels]`."""
        pooled, _ = self.read_at(batch)
        return self._classify(pooled)

    def _classify(self, pooled: Tensor) -> Tensor:
        return self.classifier(self.dropout(pooled)).float()


class SequenceClassifier(SequenceHead):
    """Single-label classification; targets: `labels`, INT64 `[batch]`."""

    task = "classification"
    losses = ("label",)
    problem = "single_label_classification"
    classes = True

    def sums(self, batch: Batch, options: LossOptions) -> Tensor:
        return self.loss_sum(self.answer(batch), batch.targets["labels"], options)[None]

    @staticmethod
    def loss_sum(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        """Summed cross-entropy in FP32; `[batch, labels]` and INT64 `[batch]` → a scalar."""
        weights = logits.new_tensor(options.class_weights) if options.class_weights else None
        return F.cross_entropy(
            logits.float(), labels, weights, reduction="sum", label_smoothing=options.label_smoothing
        )

    def counts(self, batch: Batch, options: LossOptions) -> list[float]:
        if options.class_weights:
            return [float(torch.tensor(options.class_weights)[batch.targets["labels"].cpu()].sum())]
        return [float(len(batch))]

    def score(self, batch: Batch) -> dict[str, float]:
        logits, labels = self.answer(batch), batch.targets["labels"]
        return {
            "examples": float(len(batch)),
            "loss": float(self.loss_sum(logits, labels, LossOptions())),
            "accuracy": float((logits.argmax(-1) == labels).sum()),
        }
