"""What stands on top of BERT: one class a head, with the names of its graph outputs."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from bertmp.errors import InputError
from bertmp.model.bert import Bert
from bertmp.model.config import BertConfig


class Head(nn.Module):
    """A BERT with something on top.

    Attributes:
        task: the head's name on the command line.
        architecture: Hugging Face's name of the class, as `config.json` has it.
        outputs: the names of the graph's outputs, in the order in which `forward` returns them.
        own_keys: prefixes of the weights that belong to the head, not to BERT.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    own_keys: ClassVar[tuple[str, ...]]

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config)


class EncoderOnly(Head):
    """No head: the encoder's states and the pooled one."""

    task = "encoder"
    architecture = "BertModel"
    outputs = ("last_hidden_state", "pooler_output")
    own_keys = ()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """INT64 `[batch, length]` each → FP32 `[batch, length, hidden]` and `[batch, hidden]`."""
        return self.bert(input_ids, attention_mask, token_type_ids)


class SequenceClassifier(Head):
    """One label a text (section 4.1): a linear layer on the pooled state."""

    task = "classification"
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
        return self.classifier(self.dropout(pooled)).float()

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in FP32; `[batch, labels]` and INT64 `[batch]` → a scalar."""
        return F.cross_entropy(logits.float(), labels)


HEADS: dict[str, type[Head]] = {head.task: head for head in (EncoderOnly, SequenceClassifier)}


def head_for(task: str) -> type[Head]:
    """The head of a task.

    Errors: InputError for an unknown task.
    """
    if task not in HEADS:
        raise InputError(f"unknown task '{task}'", "--task", f"use one of {', '.join(HEADS)}")
    return HEADS[task]
