"""Samples of a prepared corpus: `[CLS] A [SEP] B [SEP]`, half of them with a B from another document.

As in Devlin et al. 2019 (appendix A.2 and the paper's code), consecutive sentences of a document are packed
up to a target length. A is a random number of them from the front; B is the rest or, in a negative sample,
as many sentences as fit from a random position of another document. In a corpus of pairs each pair is a
sample, and B of a negative is the second text of another pair.

The sentences of a sample are fixed. The end of A, the choice of negatives and their B change every epoch;
they are functions of (seed, epoch, sample), computed for any number of samples at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.pretraining import counter_rng
from bertmp.pretraining.token_store import Store

BLOCK = 1 << 16
"""Samples, or documents, per block when all of them are processed."""

_IS_SHORT, _SHORT_LENGTH, _SPLIT, _IS_NEGATIVE, _DOCUMENT, _SENTENCE = range(6)


@dataclass(frozen=True)
class SamplingConfig:
    """How samples are drawn.

    Attributes:
        max_length: the most tokens of a sample, with `[CLS]` and `[SEP]`.
        seed: seed of all random choices.
        pairs: whether a sample has two segments, for next-sentence prediction.
        short_seq_prob: fraction of samples that are packed to a random shorter length, as in the paper's
            code, so that the model also sees short texts. Does not apply to corpora of pairs.
    """

    max_length: int
    seed: int
    pairs: bool = True
    short_seq_prob: float = 0.1

    @property
    def max_text_tokens(self) -> int:
        """The most tokens of a sample without the special tokens."""
        return self.max_length - (3 if self.pairs else 2)


@dataclass(frozen=True)
class SampleSpans:
    """The spans of some samples in the store's tokens, INT64 `[samples]` each.

    Attributes:
        first_start, first_length: segment A.
        second_start, second_length: segment B; its length is 0 if there is none.
        negative: 1 if B does not follow A.
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
        store: the corpus.
        config: how samples are drawn.
        first: INT64 `[samples]`, first sentence of each.
        count: UINT16 `[samples]`, number of sentences.
        document: INT32 `[samples]`, their document.
        negative_share: probability that a sample of several sentences is negative; one of a single sentence
            always is.
    """

    store: Store
    config: SamplingConfig
    first: np.ndarray
    count: np.ndarray
    document: np.ndarray
    negative_share: float

    @classmethod
    def of(cls, store: Store, config: SamplingConfig, where: Path) -> Samples:
        """Packs a corpus; `where` is the user's path, for messages.

        Raises:
            InputError: next-sentence prediction has no negative or no positive samples.
        """
        if config.max_text_tokens < 2:
            raise InputError(f"--max-length is {config.max_length}", "--max-length", "give at least 5")
        if config.pairs and store.counts.documents < 2:
            what = "the corpus is one document: next-sentence prediction has no negatives"
            raise InputError(what, where, "put blank lines between documents, or train with --no-nsp")
        if store.pairs:
            document = np.arange(store.counts.documents, dtype=np.int32)
            first, count = 2 * document.astype(np.int64), np.full(len(document), 2, dtype=np.uint16)
        else:
            first, count, document = _pack(store, config)
        several = int((count > 1).sum())
        if config.pairs and several == 0:
            what = "no two sentences of a document fit together: next-sentence prediction has no true pairs"
            raise InputError(what, where, "raise --max-length, or train with --no-nsp")
        share = min(1.0, max(0.0, (len(count) / 2 - (len(count) - several)) / max(1, several)))
        return cls(store, config, first, count, document, share)

    def __len__(self) -> int:
        return len(self.first)

    def lengths(self, epoch: int) -> np.ndarray:
        """Number of tokens of each sample in an epoch, with special tokens; INT32 `[samples]`."""
        out = np.empty(len(self), dtype=np.int32)
        for start in range(0, len(self), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(self)))
            spans = self.spans(rows, epoch)
            out[rows] = spans.first_length + spans.second_length
        return out + (self.config.max_length - self.config.max_text_tokens)

    def truncated(self) -> int:
        """How many samples have more text than fits."""
        blocks = (slice(start, start + BLOCK) for start in range(0, len(self), BLOCK))
        parts = (self._tokens_between(self.first[at], self.first[at] + self.count[at]) for at in blocks)
        return sum(int((tokens > self.config.max_text_tokens).sum()) for tokens in parts)

    def spans(self, rows: np.ndarray, epoch: int) -> SampleSpans:
        """The spans of samples `rows`, INT64 `[samples]`, in an epoch."""
        first, count = self.first[rows], self.count[rows].astype(np.int64)
        if not self.config.pairs:
            start = self.store.sentences.take(first)
            length = np.minimum(self._tokens_between(first, first + count), self.config.max_text_tokens)
            nothing = np.zeros(len(rows), dtype=np.int64)
            return SampleSpans(start, length, nothing, nothing, nothing)
        split = first + 1 + counter_rng.randint(self._key(_SPLIT, epoch), rows, np.maximum(count - 1, 1))
        chance = counter_rng.uniform(self._key(_IS_NEGATIVE, epoch), rows)
        negative = (count == 1) | (chance < self.negative_share)
        length = self._tokens_between(first, split)
        elsewhere, elsewhere_end = self._other_documents(rows, epoch, length)
        second = np.where(negative, elsewhere, split)
        end = np.where(negative, elsewhere_end, first + count)
        # Truncated to the maximum length, the longer segment first: A at its front and B at its end, so that
        # the adjoining ends are kept.
        limit, tokens = self.config.max_text_tokens, self._tokens_between(second, end)
        kept_second = np.minimum(tokens, np.maximum(limit - length, limit // 2))
        kept_first = np.minimum(length, limit - kept_second)
        start = self.store.sentences.take(first) + length - kept_first
        begin = self.store.sentences.take(second)
        return SampleSpans(start, kept_first, begin, kept_second, negative.astype(np.int64))

    def _other_documents(
        self, rows: np.ndarray, epoch: int, first_length: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each sample, sentences of another document that fit beside its A: the first, and the end."""
        documents = self.store.counts.documents
        step = counter_rng.randint(self._key(_DOCUMENT, epoch), rows, documents - 1)
        other = (self.document[rows] + 1 + step) % documents
        begin, end = self.store.documents.take(other), self.store.documents.take(other + 1)
        if self.store.pairs:
            return begin + 1, end
        sentence = begin + counter_rng.randint(self._key(_SENTENCE, epoch), rows, end - begin)
        target = _targets(self.config, self.first[rows])
        return sentence, self._fitting(sentence, end, np.maximum(target - first_length, target // 2))

    def _fitting(self, sentence: np.ndarray, end: np.ndarray, limit_tokens: np.ndarray) -> np.ndarray:
        """The end of the sentences from `sentence` on that fit the limit: one at least, up to `end`."""
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
        return counter_rng.key(self.config.seed, epoch, purpose)


def _targets(config: SamplingConfig, first: np.ndarray) -> np.ndarray:
    """The target length of a sample that starts with each sentence."""
    if not config.short_seq_prob:
        return np.full(len(first), config.max_text_tokens)
    is_short = counter_rng.uniform(counter_rng.key(config.seed, _IS_SHORT), first) < config.short_seq_prob
    key = counter_rng.key(config.seed, _SHORT_LENGTH)
    short = 2 + counter_rng.randint(key, first, config.max_text_tokens - 1)
    return np.where(is_short, short, config.max_text_tokens)


def _pack(store: Store, config: SamplingConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First sentence, sentences and document of each sample."""
    documents = store.counts.documents
    starts = range(0, documents, BLOCK)
    blocks = [_pack_block(store, config, start, min(start + BLOCK, documents)) for start in starts]
    first, count, document = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return first, count, document


def _pack_block(
    store: Store, config: SamplingConfig, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packs the documents `start` to `stop - 1`, one sample of each per iteration."""
    bounds = store.documents.slice(start, stop + 1)
    tokens = store.sentences.slice(int(bounds[0]), int(bounds[-1]) + 1)
    begin, end = bounds[:-1] - bounds[0], bounds[1:] - bounds[0]
    number = np.arange(start, stop, dtype=np.int32)
    found = []
    while len(begin):
        limit = tokens[begin] + _targets(config, begin + bounds[0])
        until = np.searchsorted(tokens, limit, side="right") - 1
        until = np.clip(until, begin + 1, end)
        found.append((begin + bounds[0], (until - begin).astype(np.uint16), number))
        continues = until < end
        begin, end, number = until[continues], end[continues], number[continues]
    first, count, document = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(first, kind="stable")
    return first[order], count[order], document[order]
