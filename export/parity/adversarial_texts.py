"""Texts that models are seldom tried on, and words of a model's own vocabulary to make others from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from bertmp.data.tokenizer import Tokenizer

SCRIPTS: Mapping[str, Sequence[str]] = {
    "right-to-left": (
        "\u05de\u05d4 \u05d1\u05d9\u05e8\u05ea \u05e6\u05e8\u05e4\u05ea?",
        "\u202e\u0645\u0627 \u0647\u064a \u0639\u0627\u0635\u0645\u0629 x 12\u202c \u0623\u061f",
    ),
    "combining characters": (
        "Z\u0351\u036b\u0343\u036aa\u0329\u0346\u0302l\u0353\u035a\u0307g\u031e\u0328o\u0325\u0308",
        "e\u0301 \u00e9 A\u030a \u212b \u0e01\u0e33 \u0928\u093f \ufb03",
    ),
    "emoji": (
        "\U0001f600\U0001f44d\U0001f3fd \U0001f1eb\U0001f1f7",
        "a \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 b \u2764\ufe0f",
    ),
    "control characters": ("a\x00b\x07\x1b[31mc\u200b\ufeffd\u2028e\x85f", "\x7f\tx\r\n\x0by\ufffd\u0003"),
    "no token": ("\u200b\x00\ufeff",),
}
"""Kind → texts. The last has characters, and BERT's normalisation leaves none of them."""

_UNUSUAL = "\u16a0\U00010380\u1681\U00012000\u2d30\ua4d0"
"""Characters of scripts that vocabularies rarely have."""

_TRIED = 512


def single_token_words(tokenizer: Tokenizer, count: int, draw: random.Random) -> list[str]:
    """Words that the tokenizer makes one token each of; at least one text, whatever the vocabulary."""
    tokens = tokenizer.tokens()
    ids = [number for number in tokenizer.word_ids if tokens[number].isalnum()]
    drawn = draw.sample(ids, min(_TRIED, len(ids)))
    words = [tokens[number] for number in drawn]
    found = [
        word
        for number, word, pieces in zip(drawn, words, tokenizer.pieces(words), strict=True)
        if pieces == [number]
    ]
    return found[:count] or ["a"]


def unknown_word(tokenizer: Tokenizer) -> str | None:
    """A character that the tokenizer does not know; None where it knows all that are tried."""
    unknown = [tokenizer.id_of("[UNK]")]
    characters = list(_UNUSUAL)
    found = zip(characters, tokenizer.pieces(characters), strict=True)
    return next((character for character, pieces in found if pieces == unknown), None)
