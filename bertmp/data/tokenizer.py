"""BERT's WordPiece tokenizer, read from a checkpoint folder (Devlin et al. 2019, section 3).

The `tokenizers` library does the work. A folder has `tokenizer.json`, or only `vocab.txt`; then
`tokenizer_config.json` has the normalisation of text, and without that the vocabulary shows whether text is
lower-cased.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, write_json

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
SHORTEST = 3
"""The least limit of a text's tokens: `[CLS]`, one token and `[SEP]`."""
NEEDED = ("[CLS]", "[SEP]", "[PAD]", "[UNK]")


Span = tuple[int, int, int]
"""Number of the text, first character, character after the last."""


_NO_WORDS: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded text or text pair.

    Attributes:
        input_ids, token_type_ids: `[length]` integers, `[CLS]` and `[SEP]` included.
        truncated: whether tokens were removed to fit the maximum length.
        first: of a sentence given as words: index of a word → index of its first subword; without words that
            were truncated or have none.
        spans: where each token stands, if that was asked for: the text (0, or 1 for the second of a pair),
            its first character and the one after its last; None for special tokens that the tokenizer added.
        words: along with `spans`, the number of each token's word in its text, or None.
    """

    input_ids: Sequence[int]
    token_type_ids: Sequence[int]
    truncated: bool
    first: Mapping[int, int] = field(default_factory=lambda: _NO_WORDS)
    spans: Sequence[Span | None] = ()
    words: Sequence[int | None] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    def packed(self) -> Encoded:
        """The same in a fifth of the memory: INT64 arrays in place of lists."""
        ids, types = array("q", self.input_ids), array("q", self.token_type_ids)
        # Named one by one: `dataclasses.replace` takes ten times as long, and there may be millions.
        return Encoded(ids, types, self.truncated, self.first, self.spans, self.words)


AT_ONCE = 4096
"""Texts that are encoded in one call."""


class Tokenizer:
    """Encodes texts as token ids.

    Args:
        fast: the `tokenizers` object; its own truncation and padding are switched off.
        max_length: the most tokens of a text, with `[CLS]` and `[SEP]`; longer texts are truncated.
        pad_id: id of the padding token; None for that of `[PAD]`.
    """

    def __init__(self, fast: FastTokenizer, max_length: int, pad_id: int | None = None) -> None:
        fast.no_padding()
        fast.no_truncation()
        self._fast, self._pad_id = fast, pad_id
        self.max_length = max_length

    @classmethod
    def load(cls, folder: Path, max_length: int = 512) -> Tokenizer:
        """Loads the tokenizer of a checkpoint folder.

        Raises:
            InputError: the folder has neither `tokenizer.json` nor `vocab.txt`, or the file is damaged or
                lacks `[CLS]`, `[SEP]`, `[PAD]` or `[UNK]`.
        """
        fast = _read(Path(folder))
        for token in NEEDED:
            if fast.token_to_id(token) is None:
                raise InputError(f"the tokenizer has no {token} token", folder, "use a BERT tokenizer")
        return cls(fast, max_length)

    @classmethod
    def load_any(cls, folder: Path, max_length: int = 512) -> Tokenizer:
        """Loads the tokenizer of any encoder's folder, whatever its special tokens are called.

        The padding token is the one that the folder's settings name, or else `tokenizer.json`.

        Raises:
            InputError: the folder has neither `tokenizer.json` nor `vocab.txt`, or the file is damaged.
        """
        fast = _read(Path(folder))
        return cls(fast, max_length, _padding_id(fast, Path(folder)))

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids, added tokens included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def pad_id(self) -> int:
        return self.id_of("[PAD]") if self._pad_id is None else self._pad_id

    @cached_property
    def word_ids(self) -> list[int]:
        """The ids of tokens that stand for text: without special tokens and padding."""
        special = {number for number, token in self._fast.get_added_tokens_decoder().items() if token.special}
        known = self._fast.get_vocab(with_added_tokens=True).values()
        return sorted(set(known) - special - {self.pad_id, *map(self._fast.token_to_id, NEEDED)})

    @cached_property
    def special_ids(self) -> list[int]:
        """The ids of all special and added tokens, those that stand for text among them."""
        found = (self._fast.token_to_id(token) for token in (*NEEDED, "[MASK]"))
        named = (number for number in found if number is not None)
        return sorted({*self._fast.get_added_tokens_decoder(), *named, self.pad_id})

    def framed(self, pieces: Sequence[Sequence[int]]) -> Encoded:
        """Token ids as a text, or as a text pair, with special tokens and token types as in `encode`.

        Args:
            pieces: the ids of one text, or of two; not truncated.
        """
        encoding = self._fast.encode("a", "a" if len(pieces) > 1 else None)
        ids: list[int] = []
        types: list[int] = []
        placed = None
        for number, kind, piece in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            # The tokens of the example give way to the piece, once; special tokens belong to none.
            put = [number] if piece is None else pieces[piece] if piece != placed else ()
            placed = placed if piece is None else piece
            ids += put
            types += [kind] * len(put)
        return Encoded(ids, types, False)

    def id_of(self, token: str) -> int:
        """The id of one token.

        Raises:
            InputError: the vocabulary has no such token.
        """
        found = self._fast.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no {token} token", "", "use a BERT tokenizer")
        return int(found)

    def tokens(self) -> list[str]:
        """The token of each id; empty for unused ids."""
        by_id = {number: token for token, number in self._fast.get_vocab(with_added_tokens=True).items()}
        return [by_id.get(number, "") for number in range(max(by_id) + 1)]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of `texts`, not truncated, without `[CLS]` and `[SEP]`."""
        encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer: equal for tokenizers that encode equally."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, spans: bool = False
    ) -> list[Encoded]:
        """Token ids of `texts`, each with its text of `pairs` as the second segment if given.

        Texts that are too long are truncated at the end, of a pair the longer text first; see `truncated`.

        Args:
            spans: whether to say where each token stands in its text, which takes longer.
        """
        inputs: Sequence[Any] = texts if pairs is None else list(zip(texts, pairs, strict=True))
        special = self._fast.num_special_tokens_to_add(pairs is not None)
        return self._encode_all(inputs, special, words=False, spans=spans)

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[Encoded]:
        """Token ids of sentences given as words; sentences that are too long are truncated at the end."""
        return self._encode_all(sentences, self._fast.num_special_tokens_to_add(False), words=True)

    def _encode_all(
        self, inputs: Sequence[Any], special: int, words: bool, spans: bool = False
    ) -> list[Encoded]:
        """The encoded inputs, some at a time: the library's own encodings take ten times as much memory."""
        starts = range(0, len(inputs), AT_ONCE)
        parts = (self._encode(inputs[start : start + AT_ONCE], special, words, spans) for start in starts)
        return [encoded for part in parts for encoded in part]

    def _encode(self, inputs: Sequence[Any], special: int, words: bool, spans: bool = False) -> list[Encoded]:
        """The encoded inputs, truncated where they are too long."""
        # The fast method keeps neither word ids nor places.
        run = self._fast.encode_batch if words or spans else self._fast.encode_batch_fast
        encodings = run(inputs, words, True)
        long = [row for row, encoding in enumerate(encodings) if len(encoding.ids) > self.max_length]
        if long:
            self._fast.enable_truncation(max(self.max_length, special), strategy="longest_first")
            try:
                cut = run([inputs[row] for row in long], words, True)
            finally:
                self._fast.no_truncation()
            for row, encoding in zip(long, cut, strict=True):
                encodings[row] = encoding
        cut_rows = set(long)
        return [
            Encoded(
                input_ids=one.ids,
                token_type_ids=one.type_ids,
                truncated=row in cut_rows,
                first=_first_subwords(one) if words else _NO_WORDS,
                spans=_spans(one) if spans else (),
                words=tuple(one.word_ids) if spans else (),
            )
            for row, one in enumerate(encodings)
        ]

    def difference(self, other: Tokenizer) -> str:
        """What makes the two encode texts in different ways; empty where nothing does."""
        if self._fast.to_str() != other._fast.to_str():
            return "vocabulary or normalisation"
        if self.max_length != other.max_length:
            return f"maximum length, {self.max_length} instead of {other.max_length},"
        return "" if self.pad_id == other.pad_id else "padding token"

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, `vocab.txt` and `tokenizer_config.json` for Hugging Face."""
        by_id = sorted(self._fast.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        self._fast.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")
        lower = bool(getattr(self._fast.normalizer, "lowercase", True))
        tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
        settings = {"do_lower_case": lower, "model_max_length": self.max_length, **tokens}
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **settings})


def length_limit(folder: Path, positions: int) -> int:
    """The most tokens of a text: a checkpoint's `model_max_length`, and never more than its positions.

    Args:
        folder: the checkpoint; where its tokenizer_config.json is missing or names no limit (transformers
            writes 10^30 for none), the positions count alone.
        positions: the rows of its position embeddings.

    Raises:
        InputError: the limit is not a number, or is too small for a text.
    """
    path = folder / "tokenizer_config.json"
    limit = _object(path).get("model_max_length")
    if limit is None:
        return positions
    if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not limit >= SHORTEST:
        todo = f"write at least {SHORTEST}, or leave it out"
        raise InputError(f"model_max_length is {limit!r}", path, todo)
    return int(min(limit, positions))


def _spans(encoding: Any) -> list[Span | None]:
    places = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    return [None if text is None else (text, first, end) for text, (first, end) in places]


def _first_subwords(encoding: Any) -> dict[int, int]:
    first: dict[int, int] = {}
    for place, word in enumerate(encoding.word_ids):
        if word is not None:
            first.setdefault(word, place)
    return first


def _read(folder: Path) -> FastTokenizer:
    full, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    if full.is_file():
        try:
            return FastTokenizer.from_file(str(full))
        except Exception as error:  # the library raises bare Exception
            raise InputError("damaged tokenizer", full, f"replace it ({error})") from error
    if not vocabulary.is_file():
        raise InputError("no tokenizer: neither tokenizer.json nor vocab.txt", folder, "add one of them")
    configuration = folder / "tokenizer_config.json"
    settings = _object(configuration)
    _require_wordpiece(settings, configuration)
    try:
        text = vocabulary.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError("the vocabulary is not UTF-8", vocabulary, "replace it") from error
    # Not splitlines(): it splits at U+2028, which is a token of some vocabularies.
    vocab = {token: number for number, token in enumerate(text.removesuffix("\n").split("\n"))}
    for token in NEEDED:
        if token not in vocab:
            raise InputError(f"the vocabulary has no {token} token", vocabulary, "use a BERT vocabulary")
    # The library's BERT class wraps a plain tokenizer.
    fast = BertWordPieceTokenizer(
        vocab,
        lowercase=settings.get("do_lower_case", not _is_cased(vocab)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )._tokenizer
    _add_tokens(fast, folder, settings)
    return fast


def _padding_id(fast: FastTokenizer, folder: Path) -> int:
    """The padding token's id by the folder's settings, by `tokenizer.json`, or by its usual names."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        named = _object(folder / file).get("pad_token")
        found = fast.token_to_id(str(named["content"] if isinstance(named, dict) else named))
        if named and found is not None:
            return int(found)
    given = _object(folder / "config.json").get("pad_token_id")
    if isinstance(given, int):
        return given
    if fast.padding:
        return int(fast.padding["pad_id"])
    known = (fast.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((int(number) for number in known if number is not None), 0)


_WORDPIECE = ("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "LayoutLM", "Funnel", "Basic")
"""Tokenizer classes that split a vocabulary's words as BERT does; each exists with `Fast`, too."""


def _require_wordpiece(settings: Mapping[str, Any], where: Path) -> None:
    """Refuses a vocab.txt whose tokenizer is not BERT's: words would become `[UNK]` without a word.

    Raises:
        InputError: names the class.
    """
    name = str(settings.get("tokenizer_class") or "BertTokenizer")
    kinds = {f"{kind}Tokenizer{fast}" for kind in _WORDPIECE for fast in ("", "Fast")}
    words = settings.get("word_tokenizer_type") or settings.get("subword_tokenizer_type")
    if name not in kinds or words:
        what = f"the tokenizer is a {name}" + (f" of {words}" if words else "")
        raise InputError(f"{what}, which vocab.txt alone does not give", where, "add its tokenizer.json")


def _add_tokens(fast: FastTokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Adds the tokens that a folder lists beside its vocabulary, with the ids that transformers gives them.

    Raises:
        InputError: their ids do not follow the vocabulary's.
    """
    mapping = _object(folder / "special_tokens_map.json")
    listed = [*settings.get("additional_special_tokens", []), *mapping.get("additional_special_tokens", [])]
    named = [value for key, value in mapping.items() if key.endswith("_token")]
    special = {str(token["content"] if isinstance(token, dict) else token) for token in [*listed, *named]}
    tokens: dict[int, AddedToken] = {}
    for number, entry in settings.get("added_tokens_decoder", {}).items():
        flags = {name: bool(entry.get(name, False)) for name in _TOKEN_FLAGS}
        tokens[int(number)] = AddedToken(entry["content"], **flags)
    for content, number in _object(folder / "added_tokens.json").items():
        is_special = content in special
        tokens.setdefault(int(number), AddedToken(content, special=is_special, normalized=not is_special))
    for number, token in sorted(tokens.items()):
        fast.add_tokens([token])
        if fast.token_to_id(token.content) != number:
            what = (
                f"the added token {token.content!r} has the id {number}, which does not follow the vocabulary"
            )
            raise InputError(what, folder, "add the folder's tokenizer.json")
    # Those that no file numbers follow, in the order in which they are listed.
    rest = [str(token["content"] if isinstance(token, dict) else token) for token in listed]
    fast.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(rest)]
    )


_TOKEN_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path) if path.is_file() else {}
    if not isinstance(data, dict):
        raise InputError("not a JSON object", path, "replace it")
    return data


def _is_cased(vocab: Iterable[str]) -> bool:
    """Whether words of the vocabulary, without special tokens such as `[CLS]`, have capital letters."""
    words = (token for token in vocab if not (token[:1] == "[" and token[-1:] == "]"))
    return any("A" <= letter <= "Z" for word in words for letter in word)
