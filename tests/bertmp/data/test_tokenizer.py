"""The tokenizer gives the ids that Hugging Face's gives, and says what it cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertmp.core.errors import InputError
from bertmp.data.tokenizer import Tokenizer

TEXTS = [
    "What is the capital of Peru ?",
    "Who wrote `` The Name of the Rose '' ?",
    "ÉCOLE naïve 東京 2,500.75 don't\t\u200b\u00a0end",
    "unaffable supercalifragilistic [MASK] x" + "y" * 150,
    "",
]


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Tokenizer:
    return Tokenizer.load(minilm)


@pytest.fixture(scope="module")
def reference(minilm: Path):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers", reason="the reference tokenizer")
    return transformers.BertTokenizerFast.from_pretrained(minilm)


def folder_with(tmp_path: Path, minilm: Path, *files: str) -> Path:
    for name in files:
        shutil.copy(minilm / name, tmp_path / name)
    return tmp_path


def test_same_ids_as_transformers(tokenizer: Tokenizer, reference) -> None:  # type: ignore[no-untyped-def]
    for text, encoded in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert encoded.input_ids == reference(text)["input_ids"]
        assert not encoded.truncated


def test_same_pairs_as_transformers(tokenizer: Tokenizer, reference) -> None:  # type: ignore[no-untyped-def]
    firsts, seconds = TEXTS[:-1], TEXTS[-2::-1]
    for encoded, first, second in zip(tokenizer.encode(firsts, seconds), firsts, seconds, strict=True):
        wanted = reference(first, second)
        assert encoded.input_ids == wanted["input_ids"]
        assert encoded.token_type_ids == wanted["token_type_ids"]


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_as_in_transformers(tokenizer: Tokenizer, reference, text: str) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.encode([text])[0].input_ids == reference(text)["input_ids"]


def test_vocabulary_alone_is_as_good(tmp_path: Path, minilm: Path, tokenizer: Tokenizer) -> None:
    alone = Tokenizer.load(folder_with(tmp_path, minilm, "vocab.txt"))
    assert alone.encode(TEXTS) == tokenizer.encode(TEXTS)
    assert alone.vocabulary_size == tokenizer.vocabulary_size == 30522


def test_settings_beside_a_vocabulary_are_obeyed(tmp_path: Path, minilm: Path) -> None:
    folder = folder_with(tmp_path, minilm, "vocab.txt")
    lowered = Tokenizer.load(folder).encode(["Peru é"])
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer.load(folder)
    assert cased.encode(["Peru"])[0].input_ids[1] == cased.id_of("[UNK]")
    (folder / "tokenizer_config.json").write_text('{"strip_accents": false}')
    assert Tokenizer.load(folder).encode(["Peru é"]) != lowered


def test_odd_line_ends_inside_a_vocabulary_keep_its_ids(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2028", "\x85", "word"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    assert Tokenizer.load(tmp_path).id_of("word") == 7


def test_too_long_a_text_loses_its_tail_and_says_so(minilm: Path, tokenizer: Tokenizer) -> None:
    short = Tokenizer.load(minilm, max_length=8)
    long, fits = short.encode(["one two three four five six seven eight", "one two three four five six"])
    assert (len(long), long.truncated) == (8, True)
    assert (len(fits), fits.truncated) == (8, False)
    assert long.input_ids[0] == tokenizer.id_of("[CLS]")
    assert long.input_ids[-1] == tokenizer.id_of("[SEP]")


def test_of_a_pair_the_longer_text_is_cut(minilm: Path) -> None:
    short = Tokenizer.load(minilm, max_length=9)
    (pair,) = short.encode(["one two three four five six seven"], ["one two"])
    assert pair.truncated
    assert pair.token_type_ids == [0] * 6 + [1] * 3


def test_saved_and_read_again(tmp_path: Path, minilm: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert (tmp_path / "vocab.txt").read_bytes() == (minilm / "vocab.txt").read_bytes()
    settings_file = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings_file["do_lower_case"] is True
    (tmp_path / "tokenizer.json").unlink()
    assert Tokenizer.load(tmp_path).encode(TEXTS) == tokenizer.encode(TEXTS)


def test_fingerprints_tell_tokenizers_apart(tmp_path: Path, minilm: Path, tokenizer: Tokenizer) -> None:
    folder = folder_with(tmp_path, minilm, "vocab.txt")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(folder).fingerprint() != tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("other.txt", b"", "no tokenizer"),
        ("tokenizer.json", b'{"version": "1.0"', "damaged tokenizer"),
        ("vocab.txt", b"\xff\xfe", "not UTF-8"),
        ("vocab.txt", b"[PAD]\n[UNK]\n", "no [CLS] token"),
        ("vocab.txt", b"", "no [CLS] token"),
    ],
)
def test_broken_tokenizers_are_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        Tokenizer.load(tmp_path)
    assert says in str(caught.value)


def test_broken_settings_are_refused(tmp_path: Path, minilm: Path) -> None:
    folder = folder_with(tmp_path, minilm, "vocab.txt")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("listed", ["added_tokens.json", "added_tokens_decoder", "special_tokens_map"])
def test_tokens_listed_beside_a_vocabulary_are_added(minilm: Path, tmp_path: Path, listed: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference tokenizer")
    folder, size = folder_with(tmp_path, minilm, "vocab.txt"), 30522
    settings: dict[str, object] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    if listed == "added_tokens.json":
        (folder / "added_tokens.json").write_text(json.dumps({"[good1]": size, "Zyx": size + 1}))
    elif listed == "added_tokens_decoder":
        flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        settings["added_tokens_decoder"] = {str(size): {"content": "[good1]", **flags}}
    else:
        special = {"additional_special_tokens": ["[good1]"], "cls_token": "[CLS]"}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["the [good1] river", "zyx Zyx ZYX", "[good1][good1]"]
    for text, encoded in zip(texts, Tokenizer.load(folder).encode(texts), strict=True):
        assert encoded.input_ids == reference(text)["input_ids"], text


@pytest.mark.parametrize(
    "settings", [{"tokenizer_class": "BertJapaneseTokenizer"}, {"word_tokenizer_type": "mecab"}]
)
def test_a_tokenizer_that_a_vocabulary_does_not_give_is_refused(
    minilm: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    folder = folder_with(tmp_path, minilm, "vocab.txt")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"which vocab\.txt alone does not give"):
        Tokenizer.load(folder)


def test_spans_say_where_each_token_stands_in_its_text(minilm: Path) -> None:
    tokenizer = Tokenizer.load(minilm, 9)
    first, second = "ÉCOLE 😀 [MASK]", "unaffable words that are cut"
    (encoded,) = tokenizer.encode([first], [second], spans=True)
    (plain,) = tokenizer.encode([first], [second])
    assert (encoded.input_ids, encoded.truncated) == (plain.input_ids, True)
    assert plain.spans == ()
    tokens = tokenizer.tokens()
    found = [
        (tokens[number], span and (first, second)[span[0]][span[1] : span[2]])
        for number, span in zip(encoded.input_ids, encoded.spans, strict=True)
    ]
    assert found == [
        ("[CLS]", None),
        ("ecole", "ÉCOLE"),
        ("[UNK]", "😀"),
        ("[MASK]", "[MASK]"),
        ("[SEP]", None),
        ("una", "una"),
        ("##ffa", "ffa"),
        ("##ble", "ble"),
        ("[SEP]", None),
    ]
