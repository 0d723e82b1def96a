"""What all heads' answers have in common: what was read, scores, and the answer that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

Answer = dict[str, Any]
"""One row's answer: plain JSON values. See `decoder_of` for the fields of each task."""

Span = tuple[int, int, int]
"""Number of the text (0, or 1 for the second of a pair), first character, character after the last."""


@dataclass(frozen=True)
class Tokens:
    """The tokens that a graph read of one row.

    Attributes:
        ids: `[length]`, without padding.
        spans: where each token stands; None for `[CLS]`, `[SEP]` and the like. Read for spans and fills only.
        words: the number of each token's word in its text; None as for `spans`. Read for entities of words.
        texts: the text, and the second one of a pair.
    """

    ids: Sequence[int]
    spans: Sequence[Span | None] = ()
    texts: Sequence[str] = ("",)
    words: Sequence[int | None] = ()

    def place(self, span: Span) -> dict[str, Any]:
        """`start` and `end` in characters, and `field`, the text that they count in, for a pair."""
        where = {"field": ("text", "text_pair")[span[0]]} if len(self.texts) > 1 else {}
        return {"start": span[1], "end": span[2], **where}


class Decoder(Protocol):
    """Turns the outputs of a batch into answers.

    Attributes:
        outputs: the names of the graph's outputs that it reads.
        needs_spans: whether it reads the tokens' spans.
    """

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def needs_spans(self) -> bool: ...

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        """The answers of a batch.

        Args:
            outputs: FP32 arrays by name, as the graph gives them; they may have more rows, and padding.
            rows: what was read.
        """


class Scorer:
    """A decoder in two steps, between which the parts of a text that was read in several windows are joined.

    Attributes:
        per_token: whether the scores are of tokens and not of the text.
    """

    per_token: ClassVar[bool] = False

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logits",)

    @property
    def needs_spans(self) -> bool:
        return self.per_token

    def scores(self, outputs: Mapping[str, np.ndarray], place: int, ids: Sequence[int]) -> np.ndarray:
        """What one row's answer follows from, FP32: `[width]`, or `[tokens, width]` where per token.

        Args:
            place: the row's place in the batch.
            ids: its tokens, without padding.
        """
        raise NotImplementedError

    def answer(self, scores: np.ndarray, row: Tokens) -> Answer:
        """The answer that follows from the scores of all that was read."""
        raise NotImplementedError

    def part(self, scores: np.ndarray, ids: Sequence[int], start: int, stop: int) -> np.ndarray:
        """The scores of some of a row's tokens."""
        return scores[start:stop]

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        return [self.answer(self.scores(outputs, at, row.ids), row) for at, row in enumerate(rows)]


def mean_of_windows(parts: Sequence[np.ndarray], tokens: Sequence[int]) -> np.ndarray:
    """The scores of a text, FP32 `[width]`: the mean over its windows, each weighted by its tokens."""
    weights = np.asarray(tokens, np.float64) / sum(tokens)
    return np.asarray(weights @ np.stack(parts).astype(np.float64), np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities FP32 over the last axis, summed in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A probability FP32 for each logit by itself."""
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient 0
        return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def number(value: float | np.floating[Any]) -> float:
    """The shortest decimal number that is this FP32 value."""
    return float(str(np.float32(value)))


def scores_of(labels: Sequence[str], probabilities: np.ndarray) -> dict[str, float]:
    """Label → probability, in the order of the logits."""
    return {label: number(probabilities[place]) for place, label in enumerate(labels)}
