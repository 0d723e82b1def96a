"""Pre-training's two heads by themselves, for checkpoints that have one of them alone.

They are read, saved and exported; they are trained together, or the first alone, as `pretraining`.
"""

from __future__ import annotations

from torch import Tensor, nn

from bertmp.model.attention import Padded
from bertmp.model.config import BertConfig
from bertmp.model.heads.head import Head
from bertmp.model.heads.pretraining import Predictions, PreTraining


class MaskedLanguageModel(Head):
    """Which word stood at each place."""

    task = "masked-lm"
    architecture = "BertForMaskedLM"
    outputs = ("prediction_logits",)
    own_keys = ("cls.",)
    pooling = False
    tied = PreTraining.tied

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = nn.ModuleDict({"predictions": Predictions(config)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """INT64 `[batch, length]` each → logits, FP32 `[batch, length, vocabulary]`."""
        hidden = self.bert.encode(input_ids, token_type_ids, Padded.of(attention_mask))
        return self.cls["predictions"](hidden, self.bert.embeddings.word_embeddings.weight)


class NextSentence(Head):
    """Whether the second segment follows the first: of two logits, the first says that it does."""

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
