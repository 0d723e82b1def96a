"""A graph's outputs as answers: labels, entities, numbers, fills, embeddings. The same code for every caller.

Imports numpy alone and nothing of this project, so that it also runs where only numpy is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
        texts: the text, and the second one of a pair.
    """

    ids: Sequence[int]
    spans: Sequence[Span | None] = ()
    texts: Sequence[str] = ("",)

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


@dataclass(frozen=True)
class Classes:
    """One label of several: `label`, its `probability`, and `scores`, the probability of each.

    Attributes:
        labels: in the order of the logits.
        output: the logits' name, `[batch, labels]`.
    """

    labels: Sequence[str]
    output: str = "logits"
    needs_spans: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        logits = outputs[self.output]
        probabilities, best = softmax(logits), logits.argmax(axis=-1)
        return [
            {
                "label": self.labels[best[row]],
                "probability": number(probabilities[row, best[row]]),
                "scores": scores_of(self.labels, probabilities[row]),
            }
            for row in range(len(rows))
        ]


@dataclass(frozen=True)
class LabelSet:
    """Any number of labels: `labels`, those above `threshold`, and `scores`, the probability of each."""

    names: Sequence[str]
    threshold: float = 0.5
    outputs: tuple[str, ...] = ("logits",)
    needs_spans: bool = False

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        probabilities = sigmoid(outputs["logits"])
        return [
            {
                "labels": [name for place, name in enumerate(self.names) if found[place] > self.threshold],
                "scores": scores_of(self.names, found),
            }
            for found in probabilities[: len(rows)]
        ]


@dataclass(frozen=True)
class Value:
    """A regression's `value`."""

    outputs: tuple[str, ...] = ("logits",)
    needs_spans: bool = False

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        return [{"value": number(outputs["logits"][row, 0])} for row in range(len(rows))]


@dataclass(frozen=True)
class Entities:
    """Spans of text: `entities`, a list of `label`, `start`, `end`, `score` and `text`.

    Neighbouring tokens of one type are one entity, as by transformers' aggregation `simple`; a token that
    begins an entity (`B-`) starts another. Of the schemes BIOES and BILOU, `S-` and `U-` begin one, too.
    Labels without such a prefix are types by themselves. The score is the mean of the tokens' probabilities.

    Attributes:
        labels: in the order of the logits, `[batch, length, labels]`.
    """

    labels: Sequence[str]
    outputs: tuple[str, ...] = ("logits",)
    needs_spans: bool = True

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        return [
            {"entities": self.found(outputs["logits"][place, : len(row.ids)], row)}
            for place, row in enumerate(rows)
        ]

    def found(self, logits: np.ndarray, row: Tokens) -> list[Answer]:
        """The entities of one row; FP32 `[length, labels]`."""
        sure, best = softmax(logits).max(axis=-1), logits.argmax(axis=-1).tolist()
        groups: list[tuple[str, list[int]]] = []
        text = None
        for place, span in enumerate(row.spans):
            if span is None:
                continue
            begins, kind = split_tag(self.labels[best[place]])
            if begins or span[0] != text or not groups or groups[-1][0] != kind:
                groups.append((kind, []))
            groups[-1][1].append(place)
            text = span[0]
        return [self._entity(kind, places, sure, row) for kind, places in groups if kind != OUTSIDE]

    def _entity(self, kind: str, places: list[int], sure: np.ndarray, row: Tokens) -> Answer:
        first, last = row.spans[places[0]], row.spans[places[-1]]
        assert first is not None
        assert last is not None
        span = (first[0], first[1], last[2])
        score = number(sum(float(sure[place]) for place in places) / len(places))
        text = row.texts[span[0]][span[1] : span[2]]
        return {"label": kind, **row.place(span), "score": score, "text": text}


OUTSIDE = "O"
"""The label of tokens that belong to no entity."""


def split_tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the entity's type: `B-PER` → True, `PER`."""
    prefix, dash, kind = label.partition("-")
    if dash and kind and prefix in ("B", "I", "E", "S", "L", "U"):
        return prefix in ("B", "S", "U"), kind
    return False, label


@dataclass(frozen=True)
class Fills:
    """Words for each `[MASK]`: `fills`, a list of `start`, `end` and `candidates`, best first.

    A candidate has a `token` and its `score`, a probability.

    Attributes:
        tokens: the token of each id.
        mask: the id of `[MASK]`.
        candidates: how many there are for each.
    """

    tokens: Sequence[str]
    mask: int
    candidates: int = 5
    outputs: tuple[str, ...] = ("prediction_logits",)
    needs_spans: bool = True

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        logits = outputs["prediction_logits"]
        return [{"fills": self.found(logits[place], row)} for place, row in enumerate(rows)]

    def found(self, logits: np.ndarray, row: Tokens) -> list[Answer]:
        """The fills of one row; FP32 `[length, vocabulary]`."""
        spans = ((place, span) for place, span in enumerate(row.spans) if row.ids[place] == self.mask)
        return [{**row.place(span), "candidates": self._best(logits[place])} for place, span in spans if span]

    def _best(self, logits: np.ndarray) -> list[Answer]:
        probabilities = softmax(logits)
        best = np.argsort(-logits, kind="stable")[: self.candidates]
        return [{"token": self._token(int(one)), "score": number(probabilities[one])} for one in best]

    def _token(self, one: int) -> str:
        """A token's text; a checkpoint may have rows that no token uses."""
        return (self.tokens[one] if one < len(self.tokens) else "") or f"[{one}]"


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


POOLINGS = ("mean", "cls")


@dataclass(frozen=True)
class Embedding:
    """An encoder's `embedding` of the text, `[hidden]`: the mean of its tokens' states, or `[CLS]`'s."""

    pooling: str = "mean"
    outputs: tuple[str, ...] = ("last_hidden_state",)
    needs_spans: bool = False

    def __call__(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Tokens]) -> list[Answer]:
        states = outputs["last_hidden_state"]
        pooled = (
            states[place, 0] if self.pooling == "cls" else states[place, : len(row.ids)].mean(axis=0)
            for place, row in enumerate(rows)
        )
        return [{"embedding": [number(value) for value in vector]} for vector in pooled]


def decoder_of(
    task: str,
    *,
    labels: Sequence[str] = (),
    tokens: Sequence[str] = (),
    mask: int = 0,
    threshold: float = 0.5,
    pooling: str = "mean",
) -> Decoder:
    """The decoder of a head's outputs.

    Args:
        task: the head, such as `token-classification`.
        labels: the classes, in the order of the logits.
        tokens, mask: the token of each id, and the id of `[MASK]`; for heads over the vocabulary.
        threshold: the probability that a label of several must exceed.
        pooling: how an encoder's states become one embedding.

    Raises:
        ValueError: the task has no decoder.
    """
    fills, follows = Fills(tokens, mask), Classes(NEXT_SENTENCE, "seq_relationship_logits")
    decoders: dict[str, Decoder] = {
        "classification": Classes(labels),
        "multi-label-classification": LabelSet(labels, threshold),
        "regression": Value(),
        "token-classification": Entities(labels),
        "masked-lm": fills,
        "next-sentence": follows,
        "pretraining": PreTraining(fills, follows),
        "encoder": Embedding(pooling),
    }
    if task not in decoders:
        raise ValueError(f"no decoder for {task}")
    return decoders[task]
