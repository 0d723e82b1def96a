"""One label a word (Devlin et al. 2019, section 5.3): a linear layer on each word's first piece."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bertmp.metrics.task_metrics import entities, f1_figures, mark_entities
from bertmp.model.attention import Padded
from bertmp.model.batch import Batch
from bertmp.model.config import BertConfig
from bertmp.model.heads.classification import SequenceClassifier
from bertmp.model.heads.head import Head, LossOptions

IGNORED = -100
"""The target of tokens that are not a word's first piece; Hugging Face's number for it."""


class TokenClassifier(Head):
    """Token classification; targets: `labels`, INT64 `[tokens]`, `IGNORED` where there is no answer."""

    task = "token-classification"
    architecture = "BertForTokenClassification"
    outputs = ("logits",)
    own_keys = ("classifier.",)
    losses = ("label",)
    classes = True
    pooling = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, length, labels]`."""
        hidden = self.bert.encode(input_ids, token_type_ids, Padded.of(attention_mask))
        return self._classify(hidden)

    def _classify(self, hidden: Tensor) -> Tensor:
        return self.classifier(self.dropout(hidden)).float()

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits FP32 `[words, labels]` and targets INT64 `[words]` of the tokens that have one."""
        hidden = self.read(batch)
        labels = batch.targets["labels"]
        words = (labels != IGNORED).nonzero().squeeze(-1)
        return self._classify(hidden.index_select(0, words)), labels.index_select(0, words)

    def sums(self, batch: Batch, options: LossOptions) -> Tensor:
        logits, labels = self.answer(batch)
        return SequenceClassifier.loss_sum(logits, labels, options)[None]

    def counts(self, batch: Batch, options: LossOptions) -> list[float]:
        labels = batch.targets["labels"]
        words = labels[labels != IGNORED]
        if options.class_weights:
            return [float(torch.tensor(options.class_weights)[words.cpu()].sum())]
        return [float(len(words))]

    def score(self, batch: Batch) -> dict[str, float]:
        logits, labels = self.answer(batch)
        given = logits.argmax(-1)
        scores = {
            "words": float(len(labels)),
            "loss": float(SequenceClassifier.loss_sum(logits, labels, LossOptions())),
            "accuracy": float((given == labels).sum()),
        }
        if mark_entities(self.config.labels):
            scores.update(self._entity_scores(batch, given))
        return scores

    def _entity_scores(self, batch: Batch, given: Tensor) -> dict[str, float]:
        """Counts of entities: found with the right type and bounds, given, and true."""
        names = self.config.labels
        right = answered = wanted = 0
        answers = iter(given.tolist())
        for targets in batch.targets["labels"].cpu().split(list(batch.lengths)):
            truth = [names[label] for label in targets.tolist() if label != IGNORED]
            found = entities([names[next(answers)] for _ in truth])
            true = entities(truth)
            right, answered, wanted = right + len(found & true), answered + len(found), wanted + len(true)
        return {"right": float(right), "given": float(answered), "true": float(wanted)}

    @staticmethod
    def summarise(sums: Mapping[str, float]) -> dict[str, float]:
        """Loss and accuracy a word and, where the labels mark entities, precision, recall and F1 of these."""
        figures = {name: sums[name] / max(sums["words"], 1.0) for name in ("loss", "accuracy")}
        if "true" in sums:
            figures.update(f1_figures(sums["right"], sums["given"], sums["true"]))
        return figures
