"""Which tokens are hidden, and behind what (Devlin et al. 2019, section 3.1 and appendix C.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertmp.data.tokenizer import Tokenizer
from bertmp.pretraining import counter_rng as draws

HIDDEN, RANDOM = 0.8, 0.1
"""Of the masked tokens: the share that becomes `[MASK]`, and the share that becomes another token."""

_SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
_CHOICE, _FATE, _OTHER = range(3)


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of the tokens.

    Attributes:
        mask_id: of `[MASK]`.
        special: BOOL `[vocabulary]`, tokens that are never masked nor drawn.
        continuation: BOOL `[vocabulary]`, pieces that go on with a word.
        drawn: INT64 `[ordinary tokens]`, what a masked token may be replaced with.
    """

    mask_id: int
    special: np.ndarray
    continuation: np.ndarray
    drawn: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Errors: InputError where the tokenizer has no `[MASK]`."""
        tokens = tokenizer.tokens()
        special = np.array([token in _SPECIAL for token in tokens])
        continuation = np.array([token.startswith("##") for token in tokens])
        return cls(tokenizer.id_of("[MASK]"), special, continuation, np.flatnonzero(~special))


@dataclass(frozen=True)
class Masked:
    """A batch with some tokens hidden.

    Attributes:
        input_ids: INT64 `[tokens]`, what the model reads.
        positions: INT64 `[masked]`, ascending, among the batch's tokens.
        labels: INT64 `[masked]`, what stood there.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Masking:
    """How tokens are masked.

    Attributes:
        rate: share of each sample's ordinary tokens, rounded, but at least one.
        whole_words: masks all pieces of a word or none; a sample's share then holds on average.
    """

    vocabulary: Vocabulary
    rate: float = 0.15
    whole_words: bool = False

    def apply(self, input_ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> Masked:
        """Masks a batch.

        Args:
            input_ids: INT64 `[tokens]`, the samples end to end.
            lengths: INT64 `[batch]`.
            keys: UINT64 `[batch]`, each sample's random key; nothing else decides what is masked in it.
        """
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(input_ids)) - starts[rows]
        ordinary = ~self.vocabulary.special[input_ids]
        quotas = _quotas(np.bincount(rows[ordinary], minlength=len(lengths)), self.rate)
        choose = self._words if self.whole_words else self._tokens
        positions = choose(input_ids, rows, places, ordinary, quotas, keys)
        return self._hide(input_ids, positions, keys[rows[positions]], places[positions])

    def _tokens(
        self,
        input_ids: np.ndarray,
        rows: np.ndarray,
        places: np.ndarray,
        ordinary: np.ndarray,
        quotas: np.ndarray,
        keys: np.ndarray,
    ) -> np.ndarray:
        """In each sample, the `quota` tokens that drew the smallest numbers."""
        tokens = np.flatnonzero(ordinary)
        order = _shuffled(rows[tokens], places[tokens], keys)
        tokens = tokens[order]
        return np.sort(tokens[_rank(rows[tokens]) < quotas[rows[tokens]]])

    def _words(
        self,
        input_ids: np.ndarray,
        rows: np.ndarray,
        places: np.ndarray,
        ordinary: np.ndarray,
        quotas: np.ndarray,
        keys: np.ndarray,
    ) -> np.ndarray:
        """In each sample, words in random order until the quota is met as nearly as whole words meet it."""
        goes_on = self.vocabulary.continuation[input_ids] & (places > 0)
        goes_on[1:] &= ordinary[:-1]
        firsts = np.flatnonzero(ordinary & ~goes_on)
        if not len(firsts):
            return firsts
        word_of = np.cumsum(ordinary & ~goes_on) - 1
        sizes = np.bincount(word_of[ordinary], minlength=len(firsts))
        order = _shuffled(rows[firsts], places[firsts], keys)
        row, size = rows[firsts[order]], sizes[order]
        total = np.cumsum(size) - size
        before = total - total[np.searchsorted(row, row)]
        taken = (before + size / 2 <= quotas[row]) | (before == 0)
        chosen = np.zeros(len(firsts), dtype=bool)
        chosen[order[taken]] = True
        return np.flatnonzero(ordinary & chosen[word_of])

    def _hide(
        self, input_ids: np.ndarray, positions: np.ndarray, keys: np.ndarray, places: np.ndarray
    ) -> Masked:
        labels, read = input_ids[positions], input_ids.copy()
        fate = draws.uniform(keys, _counter(places, _FATE))
        drawn = self.vocabulary.drawn
        other = drawn[draws.below(keys, _counter(places, _OTHER), len(drawn))]
        read[positions] = np.where(
            fate < HIDDEN, self.vocabulary.mask_id, np.where(fate < HIDDEN + RANDOM, other, labels)
        )
        return Masked(read, positions, labels)


def _counter(places: np.ndarray, purpose: int) -> np.ndarray:
    return places * 3 + purpose


def _quotas(ordinary: np.ndarray, rate: float) -> np.ndarray:
    """How many of each sample's ordinary tokens are masked, INT64 `[batch]`."""
    return np.minimum(ordinary, np.maximum(1, np.rint(ordinary * rate).astype(np.int64)))


def _shuffled(rows: np.ndarray, places: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The order that shuffles each sample's entries and keeps the samples in theirs."""
    return np.lexsort((draws.uniform(keys[rows], _counter(places, _CHOICE)), rows))


def _rank(rows: np.ndarray) -> np.ndarray:
    """Each entry's number among those of its row; `rows` ascend."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)
