"""Masking of tokens for the masked language model (Devlin et al. 2019, section 3.1 and appendix C.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertmp.data.tokenizer import Tokenizer
from bertmp.pretraining import counter_rng

MASK_RATE, RANDOM_RATE = 0.8, 0.1
"""Fractions of the selected tokens that become `[MASK]` and a random token; the others stay."""

_SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
_CHOICE, _FATE, _OTHER = range(3)


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know about the tokens.

    Attributes:
        mask_id: id of `[MASK]`.
        special: BOOL `[vocabulary]`, tokens that are neither masked nor used as random tokens.
        continuation: BOOL `[vocabulary]`, subwords that continue a word.
        replacements: INT64 `[ordinary tokens]`, the random tokens.
    """

    mask_id: int
    special: np.ndarray
    continuation: np.ndarray
    replacements: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer.

        Raises:
            InputError: the tokenizer has no `[MASK]`.
        """
        tokens = tokenizer.tokens()
        special = np.array([token in _SPECIAL for token in tokens])
        continuation = np.array([token.startswith("##") for token in tokens])
        return cls(tokenizer.id_of("[MASK]"), special, continuation, np.flatnonzero(~special))


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with masked tokens.

    Attributes:
        input_ids: INT64 `[tokens]`, the model's input.
        positions: INT64 `[masked]`, ascending indices in the batch.
        labels: INT64 `[masked]`, the original tokens.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Masking:
    """How tokens are masked.

    Attributes:
        rate: fraction of each sample's ordinary tokens, rounded, at least one.
        whole_words: masks all subwords of a word or none; `rate` then holds on average.
    """

    vocabulary: Vocabulary
    rate: float = 0.15
    whole_words: bool = False

    def apply(self, input_ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> MaskedBatch:
        """Masks a batch.

        Args:
            input_ids: INT64 `[tokens]`, the concatenated samples.
            lengths: INT64 `[batch]`, number of tokens of each sample.
            keys: UINT64 `[batch]`, each sample's random key, which alone decides what is masked in it.
        """
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(np.arange(len(lengths)), lengths)
        offsets = np.arange(len(input_ids)) - starts[rows]
        positions = self._positions(input_ids, rows, offsets, keys)
        keys, offsets = keys[rows[positions]], offsets[positions]
        labels, masked = input_ids[positions], input_ids.copy()
        fate = counter_rng.uniform(keys, _counter(offsets, _FATE))
        choices = self.vocabulary.replacements
        other = choices[counter_rng.randint(keys, _counter(offsets, _OTHER), len(choices))]
        kept = np.where(fate < MASK_RATE + RANDOM_RATE, other, labels)
        masked[positions] = np.where(fate < MASK_RATE, self.vocabulary.mask_id, kept)
        return MaskedBatch(masked, positions, labels)

    def _positions(
        self, input_ids: np.ndarray, rows: np.ndarray, offsets: np.ndarray, keys: np.ndarray
    ) -> np.ndarray:
        """Random words or else tokens of each sample, as close to its quota as whole ones can be."""
        ordinary = ~self.vocabulary.special[input_ids]
        count = np.bincount(rows[ordinary], minlength=len(keys))
        quotas = np.minimum(count, np.maximum(1, np.rint(count * self.rate).astype(np.int64)))
        continues = self.vocabulary.continuation[input_ids] & (offsets > 0) & self.whole_words
        continues[1:] &= ordinary[:-1]
        begins = ordinary & ~continues
        firsts, word_of = np.flatnonzero(begins), np.cumsum(begins) - 1
        sizes = np.bincount(word_of[ordinary], minlength=len(firsts))
        order = _shuffled(rows[firsts], offsets[firsts], keys)
        row, size = rows[firsts[order]], sizes[order]
        total = np.cumsum(size) - size
        before = total - total[np.searchsorted(row, row)]
        chosen = np.zeros(len(firsts) + 1, dtype=bool)  # one more: tokens before the first word have -1
        chosen[order[(before + size / 2 <= quotas[row]) | (before == 0)]] = True
        return np.flatnonzero(ordinary & chosen[word_of])


def _counter(offsets: np.ndarray, purpose: int) -> np.ndarray:
    return offsets * 3 + purpose


def _shuffled(rows: np.ndarray, offsets: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The permutation that shuffles the entries of each sample and keeps the samples in order."""
    return np.lexsort((counter_rng.uniform(keys[rows], _counter(offsets, _CHOICE)), rows))
