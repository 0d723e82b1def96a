"""A graph's outputs as answers: labels, entities, numbers, fills, embeddings. The same code for every caller.

Imports numpy alone and nothing of this project, so that it also runs where only numpy is installed: a copy
lies beside the code of every served model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .scorer import Answer, Decoder, Scorer, Span, Tokens, mean_of_windows, number, sigmoid, softmax
from .spans import AGGREGATIONS, Entities, Fills
from .texts import POOLINGS, Classes, Embedding, LabelSet, Value, normalised

__all__ = [
    "AGGREGATIONS",
    "NEXT_SENTENCE",
    "POOLINGS",
    "Answer",
    "Classes",
    "Decoder",
    "Embedding",
    "Entities",
    "Fills",
    "LabelSet",
    "PreTraining",
    "Scorer",
    "Span",
    "Tokens",
    "Value",
    "decoder_of",
    "mean_of_windows",
    "normalised",
    "number",
    "sigmoid",
    "softmax",
]

NEXT_SENTENCE = ("is_next", "not_next")
"""The classes of next-sentence prediction, in the order of its logits (Devlin et al. 2019)."""


@dataclass(frozen=True)
class PreTraining:
    """Both answers of a pre-training head: `fills`, and `next_sentence` (as of `Classes`) for pairs."""

    fills: Fills
    next_sentence: Classes
    needs_spans: bool = True

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.fills.outputs, *self.next_sentence.outputs)

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        words, follows = self.fills(outputs, rows), self.next_sentence(outputs, rows)
        return [
            {**words[place], "next_sentence": follows[place]} if len(row.texts) > 1 else words[place]
            for place, row in enumerate(rows)
        ]


def decoder_of(
    task: str,
    *,
    labels: Sequence[str] = (),
    tokens: Sequence[str] = (),
    mask: int = 0,
    threshold: float = 0.5,
    pooling: str = "mean",
    aggregation: str = "simple",
) -> Decoder:
    """The decoder of a head's outputs.

    Args:
        task: the head, such as `token-classification`.
        labels: the classes, in the order of the logits.
        tokens, mask: the token of each id, and the id of `[MASK]`; for heads over the vocabulary.
        threshold: the probability that a label of several must exceed.
        pooling: how an encoder's states become one embedding.
        aggregation: what gets a label of an entity, see `Entities`.

    Raises:
        ValueError: the task has no decoder.
    """
    fills, follows = Fills(tokens, mask), Classes(NEXT_SENTENCE, "seq_relationship_logits")
    decoders: dict[str, Decoder] = {
        "classification": Classes(labels),
        "multi-label-classification": LabelSet(labels, threshold),
        "regression": Value(),
        "token-classification": Entities(labels, aggregation),
        "masked-lm": fills,
        "next-sentence": follows,
        "pretraining": PreTraining(fills, follows),
        "encoder": Embedding(pooling),
    }
    if task not in decoders:
        raise ValueError(f"no decoder for {task}")
    return decoders[task]
