"""The metrics of the masked language model and of next-sentence prediction; see `task_metrics`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bertmp.core.io import JsonSerializable
from bertmp.metrics.task_metrics import Figures


@dataclass(frozen=True)
class MaskedLanguageMetrics(JsonSerializable):
    """The masked language model: the mean loss, the accuracy and the perplexity of masked words."""

    mlm_loss: float
    mlm_accuracy: float
    mlm_perplexity: float


def masked_language(logits: ArrayLike, truth: ArrayLike) -> MaskedLanguageMetrics:
    """The metrics of masked words; logits `[masked, vocabulary]`, true words INT `[masked]`, at least one."""
    losses, right = cross_entropy(logits, truth), np.asarray(logits).argmax(-1) == np.asarray(truth)
    return MaskedLanguageMetrics(float(losses.mean()), float(right.mean()), perplexity(losses))


def perplexity(losses: ArrayLike) -> float:
    """The exponential of the mean of losses, `[words]`; infinite beyond the range of numbers."""
    mean = float(np.mean(np.asarray(losses, np.float64)))
    return math.exp(mean) if not mean > 709.0 else math.inf


@dataclass(frozen=True)
class NextSentenceMetrics(JsonSerializable):
    """Next-sentence prediction: the mean loss and the accuracy."""

    nsp_loss: float
    nsp_accuracy: float


def next_sentence(logits: ArrayLike, truth: ArrayLike) -> NextSentenceMetrics:
    """The metrics of pairs; logits `[rows, 2]`, truth INT `[rows]`, at least one."""
    right = np.asarray(logits).argmax(-1) == np.asarray(truth)
    return NextSentenceMetrics(float(cross_entropy(logits, truth).mean()), float(right.mean()))


def cross_entropy(logits: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """The loss of each row, FP64 `[rows]`, of logits `[rows, classes]` and true classes INT `[rows]`."""
    scores = np.asarray(logits, np.float64)
    shifted = scores - scores.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(shifted)), np.asarray(truth)]


def pretraining_figures(sums: Mapping[str, float]) -> Figures:
    """`loss`, the sum of both terms, and the loss and accuracy of each."""
    words, pairs = max(sums["masked"], 1.0), sums["examples"]
    figures = {"mlm_loss": sums["mlm_loss"] / words, "mlm_accuracy": sums["mlm_right"] / words}
    if "nsp_loss" in sums:
        figures["nsp_loss"] = sums["nsp_loss"] / pairs
        figures["nsp_accuracy"] = sums["nsp_right"] / pairs
    return {"loss": figures["mlm_loss"] + figures.get("nsp_loss", 0.0), **figures}
