"""The two heads of pre-training as separate models, for checkpoints that have only one of them.

They are loaded, saved and exported. Training uses `PreTraining`, with or without next-sentence prediction.
"""

from __future__ import annotations

from torch import Tensor, nn

from bertmp.model.attention import Padded
from bertmp.model.config import BertConfig
from bertmp.model.heads.head import Head
from bertmp.model.heads.pretraining import Predictions, PreTraining


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
