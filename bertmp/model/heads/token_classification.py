"""Token classification (Devlin et al. 2019, section 5.3): one label per word, on its first subword."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bertmp.metrics.task_metrics import entities, f1_figures, mark_entities
from bertmp.model.attention import Padded
from bertmp.model.batch import Batch
from bertmp.model.heads.head import LinearHead, LossOptions, cross_entropy_count, cross_entropy_sum

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
        given = logits.argmax(-1)
        scores = {
            "words": float(len(labels)),
            "loss": float(cross_entropy_sum(logits, labels, LossOptions())),
            "accuracy": float((given == labels).sum()),
        }
        if mark_entities(self.config.labels):
            scores.update(self._entity_scores(batch, given))
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
