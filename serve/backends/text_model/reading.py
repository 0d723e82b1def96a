"""Texts as token ids: checked, tokenized, and cut to the model's length or into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .answers import Span, Tokens

OVERLAP = 4
"""Neighbouring windows have one part of so many in common."""


class BadRequest(Exception):
    """A request that its sender has to correct; the message describes the fault."""


@dataclass(frozen=True)
class Window:
    """What the graph reads at once.

    Attributes:
        ids, types: token ids and token types, `[length]` each.
    """

    ids: list[int]
    types: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Take:
    """Which tokens of a window stand for the text: of overlapping windows, those with the most context."""

    window: int
    start: int
    stop: int


@dataclass(frozen=True)
class Row:
    """One text, or pair of texts, of a request.

    Attributes:
        windows: what the graph reads of it.
        takes: the tokens of the windows that make up the text, in order.
        tokens: those tokens.
        truncated: whether tokens were left out.
    """

    windows: list[Window]
    takes: list[Take]
    tokens: Tokens
    truncated: bool


@dataclass(frozen=True)
class Piece:
    """One text's tokens, without special ones."""

    ids: list[int]
    spans: list[Span | None]
    words: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)


class Frame:
    """Where special tokens stand around one text, or two, and the types of all tokens.

    Args:
        tokenizer: the `tokenizers` object; its own truncation and padding are switched off.
        texts: 1, or 2 for a pair.
    """

    def __init__(self, tokenizer: Any, texts: int) -> None:
        example = tokenizer.encode("a", "a" if texts == 2 else None)
        self.fixed: list[list[tuple[int, int]]] = [[]]  # (id, type) before, between and after the texts
        self.types: list[int] = []  # of each text's tokens
        at = None
        for one, kind, text in zip(example.ids, example.type_ids, example.sequence_ids):  # noqa: B905
            if text is None:
                self.fixed[-1].append((one, kind))
            elif text != at:
                at = text
                self.types.append(kind)
                self.fixed.append([])
        self.special = sum(map(len, self.fixed))

    def window(self, pieces: Sequence[Sequence[int]]) -> Window:
        """The texts' ids with what stands around them."""
        ids, types = [one for one, _ in self.fixed[0]], [kind for _, kind in self.fixed[0]]
        for piece, kind, after in zip(pieces, self.types, self.fixed[1:]):  # noqa: B905
            ids += [*piece, *(one for one, _ in after)]
            types += [kind] * len(piece) + [other for _, other in after]
        return Window(ids, types)

    def spread(self, pieces: Sequence[Sequence[Any]]) -> list[Any]:
        """A value for each token of a window: None for the special ones."""
        found: list[Any] = [None] * len(self.fixed[0])
        for piece, after in zip(pieces, self.fixed[1:]):  # noqa: B905
            found += [*piece, *[None] * len(after)]
        return found

    def starts(self, lengths: Sequence[int]) -> list[int]:
        """Where each text's tokens begin in a window."""
        found, at = [], len(self.fixed[0])
        for length, after in zip(lengths, self.fixed[1:]):  # noqa: B905
            found.append(at)
            at += length + len(after)
        return found


class Reader:
    """Reads texts as the model was trained to.

    Args:
        tokenizer: the `tokenizers` object of the model.
        settings: those of the version, see `settings.json`.
        spans: whether answers need to know where tokens stand.
    """

    def __init__(self, tokenizer: Any, settings: dict[str, Any], spans: bool) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.spans = tokenizer, spans
        self.pairs: bool = settings["pairs"]
        self.max_length: int = settings["max_length"]
        self.long_text: str = settings["long_text"]
        self.max_windows: int = settings["max_windows"]
        self.mask: int | None = settings["mask"]
        self.frame = Frame(tokenizer, 2 if self.pairs else 1)

    def pieces(self, texts: Sequence[str]) -> list[Piece]:
        """The tokens of each text."""
        # The fast method keeps neither words nor places.
        run = self.tokenizer.encode_batch if self.spans else self.tokenizer.encode_batch_fast
        found = run(texts, add_special_tokens=False) if texts else []
        if not self.spans:
            return [Piece(one.ids, [], []) for one in found]
        return [Piece(one.ids, [(0, *at) for at in one.offsets], one.word_ids) for one in found]

    def row(self, texts: tuple[str, ...], pieces: Sequence[Piece], where: str) -> Row:
        """One text, or pair, as the graph reads it.

        Args:
            where: what messages call it.

        Raises:
            BadRequest: it is too long and may not be cut, or has no mask where words are wanted for masks.
        """
        if self.mask is not None and not any(self.mask in piece.ids for piece in pieces):
            raise BadRequest(f"{where} has no {self.tokenizer.id_to_token(self.mask)}")
        space, lengths = self.max_length - self.frame.special, list(map(len, pieces))
        if sum(lengths) <= space:
            return self._whole(texts, pieces, truncated=False)
        if self.long_text == "refuse":
            tokens = sum(lengths) + self.frame.special
            raise BadRequest(f"{where} is too long: {tokens} tokens, the most is {self.max_length}")
        if self.long_text == "window":
            return self._windows(texts, pieces, space, where)
        kept = kept_lengths(lengths, space)
        cut = [
            Piece(one.ids[:count], one.spans[:count], one.words[:count])
            for one, count in zip(pieces, kept)  # noqa: B905
        ]
        return self._whole(texts, cut, truncated=True)

    def _tokens(self, texts: tuple[str, ...], pieces: Sequence[Piece], ids: list[int]) -> Tokens:
        if not self.spans:
            return Tokens(ids, texts=texts)
        spans = [[span and (number, *span[1:]) for span in one.spans] for number, one in enumerate(pieces)]
        words = self.frame.spread([one.words for one in pieces])
        return Tokens(ids, self.frame.spread(spans), texts, words)

    def _whole(self, texts: tuple[str, ...], pieces: Sequence[Piece], truncated: bool) -> Row:
        window = self.frame.window([one.ids for one in pieces])
        tokens = self._tokens(texts, pieces, window.ids)
        return Row([window], [Take(0, 0, len(window))], tokens, truncated)

    def _windows(self, texts: tuple[str, ...], pieces: Sequence[Piece], space: int, where: str) -> Row:
        """Overlapping windows of the text, or of the longer one of a pair, beside all of the other."""
        long = max(range(len(pieces)), key=lambda number: len(pieces[number]))
        space -= sum(len(one) for number, one in enumerate(pieces) if number != long)
        if space < OVERLAP:
            others = f"its shorter text leaves {max(space, 0)} of {self.max_length} tokens for windows"
            raise BadRequest(f"{where} is too long: {others} of the longer one")
        total = len(pieces[long])
        starts = window_starts(total, space)
        if len(starts) > self.max_windows:
            what = f"it needs {len(starts)} windows, the most is {self.max_windows}"
            raise BadRequest(f"{where} is too long: {what}")
        windows = []
        for start in starts:
            ids = [one.ids for one in pieces]
            ids[long] = ids[long][start : start + space]
            windows.append(self.frame.window(ids))
        lengths = [space if number == long else len(one) for number, one in enumerate(pieces)]
        begin = self.frame.starts(lengths)[long]  # where the long text's tokens begin in each window
        # Neighbours meet in the middle of what they have in common.
        meets = [(later + earlier + space) // 2 for earlier, later in pairwise(starts)]
        ends = zip([0, *meets], [*meets, total], starts)  # noqa: B905
        takes = [Take(at, begin + a - start, begin + b - start) for at, (a, b, start) in enumerate(ends)]
        takes[0] = Take(0, 0, takes[0].stop)
        takes[-1] = Take(len(windows) - 1, takes[-1].start, len(windows[-1]))
        whole = self.frame.window([one.ids for one in pieces])
        return Row(windows, takes, self._tokens(texts, pieces, whole.ids), truncated=False)


def kept_lengths(lengths: Sequence[int], space: int) -> list[int]:
    """How many tokens of each text are kept: of a pair, the longer one is cut first, as `tokenizers` does."""
    if len(lengths) == 1:
        return [min(lengths[0], space)]
    short, half = min(lengths), space // 2
    kept = (short, space - short) if short <= half else (half, half + space % 2)
    return list(kept if lengths[0] <= lengths[1] else kept[::-1])


def window_starts(total: int, space: int) -> list[int]:
    """Where windows of `space` tokens begin, the last one at the end: all are full, and overlap."""
    step = space - space // OVERLAP
    return [*range(0, total - space, step), total - space]


def read_text(value: bytes, where: str, max_bytes: int) -> str:
    """One text of a request, checked.

    Raises:
        BadRequest: it is empty, longer than `max_bytes`, or not UTF-8.
    """
    if len(value) > max_bytes:
        raise BadRequest(f"{where} is too large: {len(value)} bytes, the most is {max_bytes}")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = value[error.start]
        raise BadRequest(f"{where} is not UTF-8: byte 0x{byte:02x} at position {error.start}") from error
    if not text.strip():
        raise BadRequest(f"{where} is empty")
    return text
