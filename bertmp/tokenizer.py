"""BERT's WordPiece tokenizer, read from a checkpoint folder (Devlin et al. 2019, section 3).

The `tokenizers` library does the work. A folder brings `tokenizer.json`, or `vocab.txt` alone, in which
case `tokenizer_config.json` says how text is normalised (lower-cased where it is silent).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from bertmp.errors import InputError
from bertmp.files import read_json, write_json

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Encoded:
    """One text, or pair of texts, as the model reads it.

    Attributes:
        input_ids, token_type_ids: `[length]` Python integers, `[CLS]` and `[SEP]` included.
        truncated: whether tokens were cut off to fit the maximum length.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool

    def __len__(self) -> int:
        return len(self.input_ids)


class Tokenizer:
    """Texts to token ids.

    Args:
        fast: the `tokenizers` object; its own truncation and padding are switched off.
        max_length: the most tokens a text may have, `[CLS]` and `[SEP]` included; longer ones are cut.
    """

    def __init__(self, fast: FastTokenizer, max_length: int) -> None:
        fast.no_padding()
        fast.no_truncation()
        self._fast = fast
        self.max_length = max_length

    @classmethod
    def load(cls, folder: Path, max_length: int = 512) -> Tokenizer:
        """Reads the tokenizer of a checkpoint folder.

        Errors: InputError where the folder has neither `tokenizer.json` nor `vocab.txt`, or where the
        file is damaged or lacks `[CLS]`, `[SEP]`, `[PAD]` or `[UNK]`.
        """
        fast = _read(Path(folder))
        for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]"):
            if fast.token_to_id(token) is None:
                raise InputError(f"the tokenizer has no {token} token", folder, "use a BERT tokenizer")
        return cls(fast, max_length)

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids, added tokens included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def pad_id(self) -> int:
        return self.id_of("[PAD]")

    def id_of(self, token: str) -> int:
        """The id of one token.

        Errors: InputError where the vocabulary has no such token.
        """
        found = self._fast.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no {token} token", "", "use a BERT tokenizer")
        return int(found)

    def fingerprint(self) -> str:
        """SHA-256 of the whole tokenizer: equal exactly when texts become the same ids."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Encoded]:
        """Token ids of `texts`, each with its text of `pairs` as the second segment where given.

        Too long a text loses its tail, and of a pair the longer text loses first; `truncated` says so.
        """
        inputs: Sequence[object] = texts if pairs is None else list(zip(texts, pairs, strict=True))
        special = self._fast.num_special_tokens_to_add(pairs is not None)
        encodings = self._fast.encode_batch_fast(inputs, add_special_tokens=True)
        long = [row for row, encoding in enumerate(encodings) if len(encoding.ids) > self.max_length]
        if long:
            self._fast.enable_truncation(max(self.max_length, special), strategy="longest_first")
            try:
                cut = self._fast.encode_batch_fast([inputs[row] for row in long], add_special_tokens=True)
            finally:
                self._fast.no_truncation()
            for row, encoding in zip(long, cut, strict=True):
                encodings[row] = encoding
        cut_rows = set(long)
        return [
            Encoded(list(encoding.ids), list(encoding.type_ids), row in cut_rows)
            for row, encoding in enumerate(encodings)
        ]

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, `vocab.txt` and `tokenizer_config.json` as Hugging Face reads them."""
        by_id = sorted(self._fast.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        self._fast.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")
        lower = bool(getattr(self._fast.normalizer, "lowercase", True))
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": lower,
                "model_max_length": self.max_length,
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "mask_token": "[MASK]",
            },
        )


def _read(folder: Path) -> FastTokenizer:
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    if whole.is_file():
        try:
            return FastTokenizer.from_file(str(whole))
        except Exception as error:  # the library raises bare Exception
            raise InputError("damaged tokenizer", whole, f"replace it ({error})") from error
    if not vocabulary.is_file():
        raise InputError("no tokenizer: neither tokenizer.json nor vocab.txt", folder, "add one of them")
    settings = _settings(folder / "tokenizer_config.json")
    try:
        text = vocabulary.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("the vocabulary is not UTF-8", vocabulary, "replace it") from error
    # Not splitlines(): some vocabularies hold tokens such as U+2028, which it takes for a line's end.
    vocab = {token: number for number, token in enumerate(text.removesuffix("\n").split("\n"))}
    for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]"):
        if token not in vocab:
            raise InputError(f"the vocabulary has no {token} token", vocabulary, "use a BERT vocabulary")
    # The library's ready-made class wraps a plain tokenizer; the plain one is what we keep.
    return BertWordPieceTokenizer(
        vocab,
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )._tokenizer


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise InputError("not a JSON object", path, "replace it")
    return settings
