"""Real texts of 7 to 256 tokens: questions and short messages as they are, film dialogue joined to length."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bertmp.data.readers import read_examples
from bertmp.data.tokenizer import Tokenizer

SHORTEST, LONGEST = 7, 256
"""In tokens, [CLS] and [SEP] included."""

SHARES = {"trec": 0.5, "sms-spam": 0.3, "moviedialog": 0.2}
JOINED_FROM = 32
"""Dialogue is joined to lengths between this and LONGEST, evenly on a logarithmic scale."""

_FILES = {"trec": "test.tsv", "sms-spam": "messages.tsv", "moviedialog": "pairs.tsv"}
_SEED = 14


def draw_texts(folders: Mapping[str, Path], tokenizer: Tokenizer, count: int) -> list[str]:
    """A fixed mixture in a fixed random order: `SHARES` of each source.

    Args:
        folders: of the downloads, by the names of `SHARES`.
        tokenizer: the served model's, which measures the lengths.
    """
    draw = random.Random(_SEED)

    def length_of(text: str) -> int:
        return len(tokenizer.encode([text])[0])

    texts: list[str] = []
    for name, share in SHARES.items():
        source = _shuffled(folders[name] / _FILES[name], draw)
        wanted = round(share * count)
        pieces = _joined(source, length_of, draw) if name == "moviedialog" else source
        fitting = (text for text in pieces if SHORTEST <= length_of(text) <= LONGEST)
        texts += [text for text, _ in zip(fitting, range(wanted), strict=False)]
    draw.shuffle(texts)
    return texts


def _shuffled(path: Path, draw: random.Random) -> Iterator[str]:
    texts = [" ".join(text.split()) for text in read_examples(path).texts]
    draw.shuffle(texts)
    return iter(texts)


def _joined(lines: Iterator[str], length_of: Callable[[str], int], draw: random.Random) -> Iterator[str]:
    """Lines joined with spaces to lengths drawn between JOINED_FROM and LONGEST."""
    while True:
        target = math.exp(draw.uniform(math.log(JOINED_FROM), math.log(LONGEST)))
        text = next(lines)
        for line in lines:
            longer = f"{text} {line}"
            if length_of(longer) > target:
                break
            text = longer
        yield text


def lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """The texts' lengths in tokens."""
    return [len(row) for row in tokenizer.encode(texts)]
