"""Any number of labels a text: one yes-or-no question a label, on the pooled state."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from bertmp.metrics.task_metrics import f1_figures
from bertmp.model.batch import Batch
from bertmp.model.heads.classification import SequenceHead
from bertmp.model.heads.head import LossOptions


class MultiLabelClassifier(SequenceHead):
    """Multi-label classification; targets: `labels`, FP32 `[batch, labels]`, 1 where a label holds.

    A label is given where its logit is above 0, a probability above a half.
    """

    task = "multi-label-classification"
    losses = ("label",)
    problem = "multi_label_classification"
    classes = True

    def sums(self, batch: Batch, options: LossOptions) -> Tensor:
        return self.loss_sum(self.answer(batch), batch.targets["labels"], options)[None]

    @staticmethod
    def loss_sum(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        """Summed binary cross-entropy of every label in FP32; `[batch, labels]` twice → a scalar.

        Smoothing moves each answer towards a half; class weights weigh the labels' terms.
        """
        smooth = options.label_smoothing
        wanted = labels.float() * (1.0 - smooth) + 0.5 * smooth
        weights = logits.new_tensor(options.class_weights) if options.class_weights else None
        return F.binary_cross_entropy_with_logits(logits.float(), wanted, weights, reduction="sum")

    def counts(self, batch: Batch, options: LossOptions) -> list[float]:
        weight = sum(options.class_weights) if options.class_weights else len(self.config.labels)
        return [float(len(batch) * weight)]

    def score(self, batch: Batch) -> dict[str, float]:
        logits, labels = self.answer(batch), batch.targets["labels"].bool()
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
        """Loss, share of texts with exactly their labels, and F1 over all single labels (micro average)."""
        return {
            "loss": sums["loss"] / sums["examples"],
            "accuracy": sums["accuracy"] / sums["examples"],
            **f1_figures(sums["right"], sums["given"], sums["true"]),
        }
