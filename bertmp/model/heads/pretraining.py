"""Pre-training (Devlin et al. 2019, section 3.1): masked language model and next-sentence prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bertmp.metrics.pretraining_metrics import pretraining_figures
from bertmp.model.bert import ACTIVATION, LayerNorm, Padded
from bertmp.model.config import BertConfig
from bertmp.model.heads.head import Head, LossOptions
from bertmp.model.packed import Batch

LOGIT_ROWS = 256
"""Masked positions whose logits are in memory at a time. A row of logits over BERT's vocabulary takes half a
megabyte with its loss and gradient; larger batches recompute the logits in the backward pass instead."""


class Transform(nn.Module):
    """The layer between the encoder and the decoder."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATION[config.hidden_act]
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[…, hidden]` → FP32 `[…, hidden]`."""
        return self.LayerNorm(self.activation(self.dense(hidden)))


class Predictions(nn.Module):
    """The masked language model's head: its decoder is tied to the word embeddings and has its own bias."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """FP32 `[…, hidden]` and the embeddings `[vocabulary, hidden]` → FP32 `[…, vocabulary]`."""
        return F.linear(self.transform(hidden), words, self.bias).float()


class PreTrainingHeads(nn.Module):
    """Both heads, with Hugging Face's module names."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class PreTraining(Head):
    """Masked language model and next-sentence prediction.

    Targets: `masked`, INT64 `[masked]`, indices of the masked tokens in the batch; `masked_labels`, INT64
    `[masked]`, their original tokens; `next_sentence`, INT64 `[batch]`, 0 if the second segment follows the
    first and 1 if it is a random one, absent without next-sentence prediction.
    """

    task = "pretraining"
    architecture = "BertForPreTraining"
    outputs = ("prediction_logits", "seq_relationship_logits")
    own_keys = ("cls.",)
    losses = ("mlm", "nsp")
    tied_weights = (
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    )

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = PreTrainingHeads(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, length, vocabulary]` and `[batch, 2]`."""
        hidden, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self.cls.predictions(hidden, self._words), self.cls.seq_relationship(pooled).float()

    @property
    def _words(self) -> Tensor:
        """The word embeddings, `[vocabulary, hidden]`."""
        return self.bert.embeddings.word_embeddings.weight

    def loss_sums(self, batch: Batch, options: LossOptions) -> Tensor:
        pooled, masked = self.encode_at(batch, batch.targets["masked"])
        mlm = self._mlm_loss(masked, batch.targets["masked_labels"])
        return torch.stack([mlm, self._nsp_loss(pooled, batch)])

    def _mlm_loss(self, masked: Tensor, labels: Tensor) -> Tensor:
        """Summed FP32 cross-entropy, with at most `LOGIT_ROWS` rows of logits at a time."""
        if len(labels) <= LOGIT_ROWS:
            return self._rows_loss(masked, labels)
        parts = [
            checkpoint(self._rows_loss, rows, answers, use_reentrant=False, preserve_rng_state=False)
            for rows, answers in zip(masked.split(LOGIT_ROWS), labels.split(LOGIT_ROWS), strict=True)
        ]
        return torch.stack(parts).sum()

    def _rows_loss(self, masked: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.cls.predictions(masked, self._words), labels, reduction="sum")

    def _nsp_loss(self, pooled: Tensor, batch: Batch) -> Tensor:
        logits = self.cls.seq_relationship(pooled).float()
        if "next_sentence" not in batch.targets:
            # Zero with a gradient: every process must have one for every parameter.
            return logits.sum() * 0.0
        return F.cross_entropy(logits, batch.targets["next_sentence"], reduction="sum")

    def loss_counts(self, batch: Batch, options: LossOptions) -> list[float]:
        pairs = len(batch) if "next_sentence" in batch.targets else 0
        return [float(len(batch.targets["masked"])), float(pairs)]

    def score(self, batch: Batch) -> dict[str, float]:
        pooled, masked = self.encode_at(batch, batch.targets["masked"])
        sizes = {"examples": float(len(batch)), "masked": float(len(masked))}
        scores = {**sizes, "mlm_loss": 0.0, "mlm_right": 0.0}
        labels = batch.targets["masked_labels"]
        for rows, answers in zip(masked.split(LOGIT_ROWS), labels.split(LOGIT_ROWS), strict=True):
            logits = self.cls.predictions(rows, self._words)
            scores["mlm_loss"] += float(F.cross_entropy(logits, answers, reduction="sum"))
            scores["mlm_right"] += float((logits.argmax(-1) == answers).sum())
        if "next_sentence" in batch.targets:
            logits, answers = self.cls.seq_relationship(pooled).float(), batch.targets["next_sentence"]
            scores["nsp_loss"] = float(F.cross_entropy(logits, answers, reduction="sum"))
            scores["nsp_right"] = float((logits.argmax(-1) == answers).sum())
        return scores

    summarise = staticmethod(pretraining_figures)


class MaskedLanguageModel(Head):
    """The masked language model."""

    task = "masked-lm"
    architecture = "BertForMaskedLM"
    outputs = ("prediction_logits",)
    own_keys = ("cls.",)
    pooling = False
    tied_weights = PreTraining.tied_weights

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = nn.ModuleDict({"predictions": Predictions(config)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, length, vocabulary]`."""
        hidden = self.bert.encode(input_ids, token_type_ids, Padded.of(attention_mask))
        return self.cls["predictions"](hidden, self.bert.embeddings.word_embeddings.weight)


class NextSentence(Head):
    """Next-sentence prediction: the first of two logits is for a second segment that follows the first."""

    task = "next-sentence"
    architecture = "BertForNextSentencePrediction"
    outputs = ("seq_relationship_logits",)
    own_keys = ("cls.",)

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = nn.ModuleDict({"seq_relationship": nn.Linear(config.hidden_size, 2)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, 2]`."""
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self.cls["seq_relationship"](pooled).float()
