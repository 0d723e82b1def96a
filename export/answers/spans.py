"""Answers about places in a text: entities, words for masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .scorer import Answer, Scorer, Span, Tokens, number, softmax

AGGREGATIONS = ("simple", "first", "max")


@dataclass(frozen=True)
class Entities(Scorer):
    """Spans of text: `entities`, a list of `label`, `start`, `end`, `score` and `text`.

    Neighbouring units of one type are one entity, as by transformers' aggregations of the same names; a unit
    that begins an entity (`B-`) starts another. Of the schemes BIOES and BILOU, `S-` and `U-` begin one, too.
    Labels without such a prefix are types by themselves. The score is the mean of the units' probabilities.

    Attributes:
        labels: in the order of the logits, `[batch, length, labels]`.
        aggregation: a unit is a token (`simple`), or a word with the label of its first token (`first`) or of
            the one with the highest probability (`max`).
    """

    labels: Sequence[str]
    aggregation: str = "simple"
    per_token: ClassVar[bool] = True

    def scores(self, outputs: Mapping[str, np.ndarray], place: int, ids: Sequence[int]) -> np.ndarray:
        return outputs["logits"][place, : len(ids)]

    def answer(self, scores: np.ndarray, row: Tokens) -> Answer:
        sure, best = softmax(scores).max(axis=-1), scores.argmax(axis=-1).tolist()
        groups: list[tuple[str, list[Unit]]] = []
        text = None
        for unit in self._units(row, sure):
            begins, kind = split_tag(self.labels[best[unit.decides]])
            if begins or unit.span[0] != text or not groups or groups[-1][0] != kind:
                groups.append((kind, []))
            groups[-1][1].append(unit)
            text = unit.span[0]
        found = [self._entity(kind, units, sure, row) for kind, units in groups if kind != OUTSIDE]
        return {"entities": found}

    def _units(self, row: Tokens, sure: np.ndarray) -> Iterator[Unit]:
        """The tokens or words that get a label, in order."""
        word: list[int] = []
        for place, span in enumerate(row.spans):
            if word and (span is None or not self._continues(row, word[-1], place)):
                yield self._unit(row, word, sure)
                word = []
            if span is not None:
                word.append(place)
        if word:
            yield self._unit(row, word, sure)

    def _continues(self, row: Tokens, before: int, place: int) -> bool:
        """Whether two neighbouring tokens are of one word, where words are the units."""
        first, second = row.spans[before], row.spans[place]
        assert first is not None
        assert second is not None
        return self.aggregation != "simple" and (first[0], row.words[before]) == (second[0], row.words[place])

    def _unit(self, row: Tokens, word: list[int], sure: np.ndarray) -> Unit:
        first, last = row.spans[word[0]], row.spans[word[-1]]
        assert first is not None
        assert last is not None
        decides = max(word, key=sure.__getitem__) if self.aggregation == "max" else word[0]
        return Unit(decides, (first[0], first[1], last[2]))

    def _entity(self, kind: str, units: list[Unit], sure: np.ndarray, row: Tokens) -> Answer:
        text, start, _ = units[0].span
        end = units[-1].span[2]
        score = number(sum(float(sure[unit.decides]) for unit in units) / len(units))
        where = row.place((text, start, end))
        return {"label": kind, **where, "score": score, "text": row.texts[text][start:end]}


@dataclass(frozen=True)
class Unit:
    """A token or a word: the place of the token that decides its label, and where it stands."""

    decides: int
    span: Span


OUTSIDE = "O"
"""The label of tokens that belong to no entity."""


def split_tag(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the entity's type: `B-PER` → True, `PER`."""
    prefix, dash, kind = label.partition("-")
    if dash and kind and prefix in ("B", "I", "E", "S", "L", "U"):
        return prefix in ("B", "S", "U"), kind
    return False, label


@dataclass(frozen=True)
class Fills(Scorer):
    """Words for each `[MASK]`: `fills`, a list of `start`, `end` and `candidates`, best first.

    A candidate has a `token` and its `score`, a probability. The scores are of the masks alone.

    Attributes:
        tokens: the token of each id.
        mask: the id of `[MASK]`.
        candidates: how many there are for each.
    """

    tokens: Sequence[str]
    mask: int
    candidates: int = 5
    per_token: ClassVar[bool] = True

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("prediction_logits",)

    def masks(self, ids: Sequence[int]) -> list[int]:
        """Where the masks are."""
        return [place for place, one in enumerate(ids) if one == self.mask]

    def scores(self, outputs: Mapping[str, np.ndarray], place: int, ids: Sequence[int]) -> np.ndarray:
        return outputs["prediction_logits"][place, self.masks(ids)]

    def part(self, scores: np.ndarray, ids: Sequence[int], start: int, stop: int) -> np.ndarray:
        return scores[[start <= place < stop for place in self.masks(ids)]]

    def answer(self, scores: np.ndarray, row: Tokens) -> Answer:
        spans = [row.spans[place] for place in self.masks(row.ids)]
        return {
            "fills": [
                {**row.place(span), "candidates": self._best(logits)}
                for span, logits in zip(spans, scores)  # noqa: B905
                if span is not None
            ]
        }

    def _best(self, logits: np.ndarray) -> list[Answer]:
        probabilities = softmax(logits)
        best = np.argsort(-logits, kind="stable")[: self.candidates]
        return [{"token": self._token(int(one)), "score": number(probabilities[one])} for one in best]

    def _token(self, one: int) -> str:
        """A token's text; a checkpoint may have rows that no token uses."""
        return (self.tokens[one] if one < len(self.tokens) else "") or f"[{one}]"
