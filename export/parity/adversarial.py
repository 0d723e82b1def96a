"""Inputs that a model is seldom tried on, made for the model at hand: parity asks every stage all of them.

They are few and mostly short: a row of the model's maximum length takes as long as many of a user's texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bertmp.data.tokenizer import Encoded, Tokenizer
from bertmp.export.bundle import BUILD_ENGINE, Bundle
from bertmp.export.consistency.tolerance import low_tolerance
from bertmp.export.engine.engine_options import recorded_profiles
from bertmp.export.parity.adversarial_texts import SCRIPTS, single_token_words, unknown_word
from bertmp.export.parity.stage import BATCH_SIZE, ParityInputs
from bertmp.export.parity.tasks import FIRST, SAMPLED, VIEWS, TaskView, Units

T = TypeVar("T")

PADDING_ROW = "padding row"
"""The kind of a row that is all padding: nothing says what its answer should be, but it is to be finite."""

_WORDS = 40
_REPEATED = 20
_IDS_PER_ROW = 16
_ROWS_PER_BATCH = 8
_LONGEST_SHORT = 10


@dataclass(frozen=True)
class AdversarialInput:
    """One row.

    Attributes:
        kind: what is unusual about it, in words.
        encoded: its token ids; none for a row that is all padding.
        text: the text that they are of; None where no text has these ids.
        pair: the second text, of a model for pairs.
        twin: the number of an input with the same row, whose answer it must get as well: in another batch.
        positions: the tokens whose answers are compared, of a model that answers each; None to choose them.
    """

    kind: str
    encoded: Encoded
    text: str | None = None
    pair: str | None = None
    twin: int | None = None
    positions: tuple[int, ...] | None = None

    def name(self) -> str:
        """What messages call it: the text, shortened, or its number of tokens."""
        if self.text is None:
            return f"{len(self.encoded)} token ids" if len(self.encoded) else "no token"
        both = self.text if self.pair is None else f"{self.text} ⏎ {self.pair}"
        return ascii_text(both if len(both) <= _SHOWN else f"{both[:_SHOWN]}…")


_SHOWN = 40


def ascii_text(text: str) -> str:
    """A text in quotation marks, with characters that cannot be seen or turn the line around escaped."""
    return repr(text) if text.isprintable() and not _turns(text) else ascii(text)


def _turns(text: str) -> bool:
    return any("\u0590" <= character <= "\u08ff" for character in text)


@dataclass(frozen=True)
class AdversarialSet:
    """All adversarial inputs for one model.

    Attributes:
        seed: what words were drawn with.
        inputs: the inputs.
        batches: which are asked together, by number; each is in exactly one.
        template: what else stages need to know of the model; its examples are empty.
    """

    seed: int
    inputs: tuple[AdversarialInput, ...]
    batches: tuple[tuple[int, ...], ...]
    template: ParityInputs

    def asked(self, stage: str, texts_only: bool) -> list[list[int]]:
        """The batches that a stage can answer.

        Args:
            texts_only: whether it takes texts; any other takes token ids. An engine takes those that fit into
                one of its profiles.
        """
        longest = max((profile.max.length for profile in self.template.profiles), default=0)
        limit = longest if stage == "engine" and longest else None

        def fits(row: AdversarialInput) -> bool:
            return row.text is not None if texts_only else limit is None or len(row.encoded) <= limit

        chosen = ([number for number in batch if fits(self.inputs[number])] for batch in self.batches)
        return [batch for batch in chosen if any(len(self.inputs[number].encoded) for number in batch)]

    def at(self, batches: Sequence[Sequence[int]]) -> tuple[list[int], ParityInputs]:
        """Some of the batches for a stage, and the numbers of their inputs in the order of its answers."""
        numbers = [number for batch in batches for number in batch]
        rows = [self.inputs[number] for number in numbers]
        view = self.template.view
        drawn = [number if row.twin is None else row.twin for row, number in zip(rows, numbers, strict=True)]
        places = [
            positions_of(row, view, self.seed + number) for row, number in zip(rows, drawn, strict=True)
        ]
        units = None
        if view.per_token:
            counts = [len(chosen) for chosen in places]
            units = Units(np.repeat(np.arange(len(rows)), counts), np.concatenate(places))
        starts = np.cumsum([0, *map(len, batches)]).tolist()
        inputs = ParityInputs(
            texts=[row.text or "" for row in rows],
            pairs=[row.pair or "" for row in rows] if any(row.pair is not None for row in rows) else None,
            truth=None,
            encoded=[row.encoded for row in rows],
            pad_id=self.template.pad_id,
            low_tolerance=self.template.low_tolerance,
            profiles=self.template.profiles,
            view=view,
            units=units,
            arranged=[
                list(range(start, start + len(batch))) for start, batch in zip(starts, batches, strict=False)
            ],
        )
        return numbers, inputs


def positions_of(row: AdversarialInput, view: TaskView, seed: int) -> np.ndarray:
    """The tokens of a row whose answers are compared, INT64 `[units]`, its first and last among them.

    All of them where there are few numbers for each, else some: of a vocabulary's logits there are many.
    """
    if row.positions is not None:
        return np.array(row.positions, np.int64)
    length = len(row.encoded)
    if length == 0:
        return np.array([FIRST], np.int64)
    if view.task == "token-classification":
        return np.arange(length)
    inner = np.random.default_rng(seed).permutation(np.arange(1, max(1, length - 1)))[: SAMPLED - 2]
    return np.unique([FIRST, *inner.tolist(), length - 1])


def template_of(bundle: Bundle) -> ParityInputs:
    """What stages need to know of a bundle's model besides the examples."""
    built = bundle.manifest.stages.get(BUILD_ENGINE)
    profiles = () if built is None else recorded_profiles(built)
    return ParityInputs(
        texts=(),
        pairs=None,
        truth=None,
        encoded=(),
        pad_id=bundle.tokenizer.pad_id,
        low_tolerance=low_tolerance(bundle),
        profiles=profiles,
        view=VIEWS[bundle.task],
    )


def adversarial_inputs(bundle: Bundle, pairs: bool, seed: int = 0) -> AdversarialSet:
    """The inputs for a bundle's model; the same for the same seed.

    Args:
        pairs: whether the model takes pairs of texts.

    Raises:
        InputError: the bundle has no tokenizer, or its plan is damaged.
    """
    template = template_of(bundle)
    rows = _Rows(
        bundle, pairs, seed, max((profile.max.batch for profile in template.profiles), default=BATCH_SIZE)
    )
    rows.add_all()
    return AdversarialSet(seed, tuple(rows.inputs), tuple(rows.batches), template)


class _Rows:
    """Collects the inputs and their batches."""

    def __init__(self, bundle: Bundle, pairs: bool, seed: int, largest_batch: int) -> None:
        self.tokenizer: Tokenizer = bundle.tokenizer
        self.pairs, self.largest_batch = pairs, largest_batch
        self.positions, self.vocabulary = bundle.max_positions, int(bundle.config["vocab_size"])
        self.draw = random.Random(seed)
        self.words = single_token_words(self.tokenizer, _WORDS, self.draw)
        self.special = len(self.tokenizer.framed([[]] * (2 if pairs else 1)))
        self.longest = max(1, self.tokenizer.max_length - self.special)
        """Tokens of the longest text, or pair, that is not truncated."""
        self.inputs: list[AdversarialInput] = []
        self.batches: list[tuple[int, ...]] = []

    def add_all(self) -> None:
        alone = [self.text("one token", 1) for _ in range(3)]
        for row in alone:
            self.batch([row])
        self.batch([self.text("mixed lengths", 1), self.text("maximum length", self.longest)])
        self.batch([self.text("one token too many", self.longest + 1)])
        if self.positions > self.tokenizer.max_length:
            self.batch([self.row("maximum length", self.ids(self.positions - self.special))])
        self._add_padding_row()
        for rows in _split(sorted(self.odd(), key=lambda row: len(row.encoded)), _ROWS_PER_BATCH):
            self.batch(rows)
        most = min(_LONGEST_SHORT, self.longest)
        self.batch(
            [self.text("largest batch", self.draw.randint(1, most)) for _ in range(self.largest_batch)]
        )

    def _add_padding_row(self) -> None:
        """Two rows by themselves, and the same two on both sides of a row that is all padding."""
        lengths = [min(size, self.longest) for size in (4, 7)]
        pair = [self.text("batch of two", length) for length in lengths]
        first = self.batch(pair)[0]
        beside = [
            AdversarialInput("beside a padding row", row.encoded, row.text, row.pair, twin=first + place)
            for place, row in enumerate(pair)
        ]
        self.batch([beside[0], AdversarialInput(PADDING_ROW, Encoded([], [], False)), beside[1]])

    def odd(self) -> Iterator[AdversarialInput]:
        """What is odd about its tokens, not about its length or its batch."""
        word, unknown = self.draw.choice(self.words), unknown_word(self.tokenizer)
        count = min(_REPEATED, self.longest)
        for kind, texts in SCRIPTS.items():
            for number, text in enumerate(texts):
                yield self.made(kind, text, second=bool(number % 2))
        yield self.made("one token repeated", " ".join([word] * count))
        yield self.row("all [UNK]", [self.tokenizer.id_of("[UNK]")] * count)
        if unknown is not None:
            yield self.made("all [UNK]", " ".join([unknown] * count))
        tokens, known = self.tokenizer.tokens(), range(self.vocabulary)
        for part in _split(self.tokenizer.special_ids, min(_IDS_PER_ROW, self.longest)):
            yield self.row("special and added tokens", [number for number in part if number in known])
            yield self.made("special and added tokens", " ".join(tokens[number] for number in part))
        for highest in sorted({known[-1], min(len(tokens) - 1, known[-1])}):
            yield self.row("highest id", [highest] * min(2, self.longest))

    def ids(self, count: int) -> list[int]:
        return self.draw.choices(self.tokenizer.word_ids or [self.tokenizer.id_of("[UNK]")], k=max(1, count))

    def text(self, kind: str, count: int) -> AdversarialInput:
        """A text of `count` words of one token each, or a pair with as many in all, one in each at least."""
        words = self.draw.choices(self.words, k=max(count, 2 if self.pairs else 1))
        first = len(words) - len(words) // 2 if self.pairs else len(words)
        pair = " ".join(words[first:]) if self.pairs else None
        return self._encoded(kind, " ".join(words[:first]), pair)

    def made(self, kind: str, text: str, second: bool = False) -> AdversarialInput:
        """A text, beside a usual word in a pair.

        Args:
            second: whether it is the pair's second text.
        """
        if not self.pairs:
            return self._encoded(kind, text, None)
        texts = (self.words[0], text) if second else (text, self.words[0])
        return self._encoded(kind, *texts)

    def _encoded(self, kind: str, text: str, pair: str | None) -> AdversarialInput:
        encoded = self.tokenizer.encode([text], None if pair is None else [pair])[0]
        return AdversarialInput(kind, encoded, text, pair)

    def row(self, kind: str, ids: Sequence[int]) -> AdversarialInput:
        """Token ids with the special tokens around them."""
        half = len(ids) - len(ids) // 2
        return AdversarialInput(
            kind, self.tokenizer.framed([ids[:half], ids[half:]] if self.pairs else [ids])
        )

    def batch(self, rows: Sequence[AdversarialInput]) -> range:
        """Adds the rows as one batch; returns their numbers."""
        numbers = range(len(self.inputs), len(self.inputs) + len(rows))
        self.inputs += rows
        self.batches.append(tuple(numbers))
        return numbers


def _split(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
