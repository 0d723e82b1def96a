"""A number a text or pair of texts, on the pooled state."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from bertmp.model.batch import Batch
from bertmp.model.heads.classification import SequenceHead
from bertmp.model.heads.head import LossOptions


class Regressor(SequenceHead):
    """Regression; targets: `labels`, FP32 `[batch]`. Its configuration has one label without a meaning."""

    task = "regression"
    losses = ("squared_error",)
    problem = "regression"

    def sums(self, batch: Batch, options: LossOptions) -> Tensor:
        """The summed squared error, FP32 `[1]`; smoothing and class weights have no part in it."""
        return self.loss_sum(self.answer(batch), batch.targets["labels"])[None]

    @staticmethod
    def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
        """Summed squared error in FP32; `[batch, 1]` and `[batch]` → a scalar."""
        return F.mse_loss(logits.float().squeeze(-1), labels.float(), reduction="sum")

    def score(self, batch: Batch) -> dict[str, float]:
        answers, truth = self.answer(batch).squeeze(-1).double(), batch.targets["labels"].double()
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
        """The mean squared error, and Pearson's correlation: 0 where answers or truth do not vary."""
        n = sums["examples"]
        mse = sums["squared_error"] / n
        covariance = sums["product"] - sums["answers"] * sums["truth"] / n
        spread = (sums["answers_squared"] - sums["answers"] ** 2 / n) * (
            sums["truth_squared"] - sums["truth"] ** 2 / n
        )
        pearson = covariance / math.sqrt(spread) if spread > 0 else 0.0
        return {"loss": mse, "mse": mse, "pearson": max(-1.0, min(1.0, pearson))}
