"""Samples of a prepared corpus: `[CLS] A [SEP] B [SEP]`, half of the time with a B from another document.

As in Devlin et al. 2019 (appendix A.2 and the paper's code), consecutive sentences of a document are packed
up to the length wanted; A is a random number of them from the front. B is the rest or, for a negative, as
many sentences as fit from a random place of another document. Of a corpus of pairs each pair is a sample, and
a negative's B is the second text of another pair.

What is packed together is settled once; where A ends, which samples are negative and what their B is are
drawn again every epoch. Everything is a function of (seed, epoch, sample), for any number of samples at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.pretraining import counter_rng as draws
from bertmp.pretraining.token_store import Store

BLOCK = 1 << 16
"""Samples, or documents, that are worked on at once where all of them are gone through."""

_IS_SHORT, _SHORT_LENGTH, _SPLIT, _IS_NEGATIVE, _DOCUMENT, _SENTENCE = range(6)


@dataclass(frozen=True)
class Recipe:
    """How samples are made.

    Attributes:
        max_length: tokens of a sample at most, `[CLS]` and `[SEP]` included.
        seed: decides all that is random.
        pairs: two segments a sample, for next-sentence prediction; else one.
        short_rate: share of samples that are packed to a random shorter length, as the paper's code has it,
            so that short texts are known, too. Not for corpora of pairs, whose lengths are what they are.
    """

    max_length: int
    seed: int
    pairs: bool = True
    short_seq_prob: float = 0.1

    @property
    def max_text_tokens(self) -> int:
        """Tokens left for text."""
        return self.max_length - (3 if self.pairs else 2)


@dataclass(frozen=True)
class Plan:
    """Where the tokens of some samples lie, INT64 `[samples]` each.

    Attributes:
        first_start, first_length: of segment A in the store's tokens.
        second_start, second_length: of segment B; its length is 0 where there is none.
        negative: 1 where B does not follow A.
    """

    first_start: np.ndarray
    first_length: np.ndarray
    second_start: np.ndarray
    second_length: np.ndarray
    negative: np.ndarray


@dataclass(frozen=True)
class Samples:
    """The samples of a corpus, fourteen bytes each.

    Attributes:
        first: INT64 `[samples]`, the first sentence of each.
        count: UINT16 `[samples]`, its sentences.
        document: INT32 `[samples]`, whose they are.
        negative_share: of the samples of several sentences; a sample of one has no other choice.
    """

    store: Store
    recipe: Recipe
    first: np.ndarray
    count: np.ndarray
    document: np.ndarray
    negative_share: float

    @classmethod
    def of(cls, store: Store, recipe: Recipe, where: Path) -> Samples:
        """Packs a corpus; `where` is the corpus as the user named it, for messages.

        Errors: InputError where next-sentence prediction has no negatives or no true pairs.
        """
        if recipe.max_text_tokens < 2:
            raise InputError(f"--max-length is {recipe.max_length}", "--max-length", "give at least 5")
        if recipe.pairs and store.counts.documents < 2:
            raise InputError(
                "the corpus is one document: next-sentence prediction has no negatives",
                where,
                "put blank lines between documents, or train with --no-nsp",
            )
        first, count, document = _pairs(store) if store.pairs else _pack(store, recipe)
        several = int((count > 1).sum())
        if recipe.pairs and several == 0:
            raise InputError(
                "no two sentences of a document fit together: next-sentence prediction has no true pairs",
                where,
                "raise --max-length, or train with --no-nsp",
            )
        alone = len(count) - several
        share = min(1.0, max(0.0, (len(count) / 2 - alone) / max(1, several)))
        return cls(store, recipe, first, count, document, share)

    def __len__(self) -> int:
        return len(self.first)

    def lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each sample in an epoch, special ones included; INT32 `[samples]`."""
        out = np.empty(len(self), dtype=np.int32)
        for start in range(0, len(self), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(self)))
            plan = self.plan(rows, epoch)
            out[rows] = plan.first_length + plan.second_length
        return out + (self.recipe.max_length - self.recipe.max_text_tokens)

    def cut(self) -> int:
        """How many samples have more text of their own than fits."""
        own = 0
        for start in range(0, len(self), BLOCK):
            rows = slice(start, start + BLOCK)
            tokens = self._tokens_between(self.first[rows], self.first[rows] + self.count[rows])
            own += int((tokens > self.recipe.max_text_tokens).sum())
        return own

    def plan(self, rows: np.ndarray, epoch: int) -> Plan:
        """What some samples are made of in an epoch; `rows` is INT64 `[samples]`."""
        first, count = self.first[rows], self.count[rows].astype(np.int64)
        if not self.recipe.pairs:
            start = self.store.sentences.take(first)
            length = np.minimum(self._tokens_between(first, first + count), self.recipe.max_text_tokens)
            nothing = np.zeros(len(rows), dtype=np.int64)
            return Plan(start, length, nothing, nothing, nothing)
        split = first + 1 + draws.below(self._key(_SPLIT, epoch), rows, np.maximum(count - 1, 1))
        chance = draws.uniform(self._key(_IS_NEGATIVE, epoch), rows)
        negative = (count == 1) | (chance < self.negative_share)
        length = self._tokens_between(first, split)
        elsewhere, elsewhere_end = self._elsewhere(rows, epoch, length)
        second = np.where(negative, elsewhere, split)
        end = np.where(negative, elsewhere_end, first + count)
        return self._fitted(first, length, second, self._tokens_between(second, end), negative)

    def _fitted(
        self,
        first: np.ndarray,
        first_length: np.ndarray,
        second: np.ndarray,
        second_length: np.ndarray,
        negative: np.ndarray,
    ) -> Plan:
        """Cuts what is too long, the longer segment first: A at its front and B at its end, so that what is
        left of both meets where one may follow the other."""
        limit_tokens = self.recipe.max_text_tokens
        kept_second = np.minimum(second_length, np.maximum(limit_tokens - first_length, limit_tokens // 2))
        kept_first = np.minimum(first_length, limit_tokens - kept_second)
        start = self.store.sentences.take(first) + first_length - kept_first
        return Plan(
            start, kept_first, self.store.sentences.take(second), kept_second, negative.astype(np.int64)
        )

    def _elsewhere(
        self, rows: np.ndarray, epoch: int, first_length: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each sample, sentences of another document that fit beside its A: the first, and their end."""
        documents = self.store.counts.documents
        step = draws.below(self._key(_DOCUMENT, epoch), rows, documents - 1)
        other = (self.document[rows] + 1 + step) % documents
        begin, end = self.store.documents.take(other), self.store.documents.take(other + 1)
        if self.store.pairs:
            return begin + 1, end
        sentence = begin + draws.below(self._key(_SENTENCE, epoch), rows, end - begin)
        target = _targets(self.recipe, self.first[rows])
        return sentence, self._fitting(sentence, end, np.maximum(target - first_length, target // 2))

    def _fitting(self, sentence: np.ndarray, end: np.ndarray, limit_tokens: np.ndarray) -> np.ndarray:
        """The end of the sentences from `sentence` on, before `end`, that fit the limit; at least one."""
        limit = self.store.sentences.take(sentence) + limit_tokens
        low = sentence + 1
        high = np.minimum(end, low + limit_tokens)
        while (wide := high > low).any():
            middle = (low + high + 1) // 2
            fits = self.store.sentences.take(middle) <= limit
            low = np.where(wide & fits, middle, low)
            high = np.where(wide & ~fits, middle - 1, high)
        return low

    def _tokens_between(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Tokens of the sentences `first` to `end - 1`."""
        return self.store.sentences.take(end) - self.store.sentences.take(first)

    def _key(self, purpose: int, epoch: int) -> np.ndarray:
        return draws.key(self.recipe.seed, epoch, purpose)


def _targets(recipe: Recipe, first: np.ndarray) -> np.ndarray:
    """The tokens to which the sample that begins with each sentence is packed."""
    if not recipe.short_seq_prob:
        return np.full(len(first), recipe.max_text_tokens)
    is_short = draws.uniform(draws.key(recipe.seed, _IS_SHORT), first) < recipe.short_seq_prob
    short = 2 + draws.below(draws.key(recipe.seed, _SHORT_LENGTH), first, recipe.max_text_tokens - 1)
    return np.where(is_short, short, recipe.max_text_tokens)


def _pairs(store: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    numbers = np.arange(store.counts.documents)
    return 2 * numbers, np.full(len(numbers), 2, dtype=np.uint16), numbers.astype(np.int32)


def _pack(store: Store, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First sentence, sentences and document of each sample."""
    blocks = [
        _pack_block(store, recipe, start, min(start + BLOCK, store.counts.documents))
        for start in range(0, store.counts.documents, BLOCK)
    ]
    first, count, document = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return first, count, document


def _pack_block(
    store: Store, recipe: Recipe, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packs the documents `start` to `stop - 1`, a sample of each of them at a time."""
    bounds = store.documents.slice(start, stop + 1)
    tokens = store.sentences.slice(int(bounds[0]), int(bounds[-1]) + 1)
    begin, end = bounds[:-1] - bounds[0], bounds[1:] - bounds[0]
    number = np.arange(start, stop, dtype=np.int32)
    found = []
    while len(begin):
        limit = tokens[begin] + _targets(recipe, begin + bounds[0])
        until = np.searchsorted(tokens, limit, side="right") - 1
        until = np.clip(until, begin + 1, end)
        found.append((begin + bounds[0], (until - begin).astype(np.uint16), number))
        goes_on = until < end
        begin, end, number = until[goes_on], end[goes_on], number[goes_on]
    first, count, document = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(first, kind="stable")
    return first[order], count[order], document[order]
