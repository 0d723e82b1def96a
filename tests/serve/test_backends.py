"""The parts of the code inside Triton that need no server, run on NVIDIA's own module as it is there."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.environment.triton_install import find_runtime
from bertmp.serve.server_config import BACKENDS


@pytest.fixture(scope="module")
def text_model(triton: None) -> Any:
    """The modules of the text model's code, as Triton imports them."""
    folder = find_runtime().backends / "python"
    sys.path[:0] = [str(folder), str(BACKENDS)]
    try:
        names = ("model", "graph", "reading", "answers")
        return SimpleNamespace(**{name: importlib.import_module(f"text_model.{name}") for name in names})
    finally:
        for path in (folder, BACKENDS):
            sys.path.remove(str(path))


@given(
    lengths=st.lists(st.integers(1, 70), max_size=80),
    step=st.sampled_from([1, 8, 16]),
    rows=st.integers(1, 33),
    tokens=st.integers(1, 600),
    padding=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_groups_hold_every_window_once_within_their_limits(
    text_model: Any, lengths: list[int], step: int, rows: int, tokens: int, padding: float
) -> None:
    groups = list(text_model.graph.Batching(rows, tokens, padding, step).groups(lengths))
    assert sorted(number for _, members in groups for number in members) == list(range(len(lengths)))
    for length, members in groups:
        assert 0 < len(members) <= rows
        assert length % step == 0
        rounded = [-(-lengths[number] // step) * step for number in members]
        assert max(rounded) == length
        size = length * len(members)
        assert len(members) == 1 or (size <= tokens and size - sum(rounded) <= padding * size)


def test_softmax_of_extreme_logits_does_not_overflow(text_model: Any) -> None:
    logits = np.array([[3e38, 0, -3e38], [0, 0, 0], [-1e4, -1e4, -1e4 + 1]], dtype=np.float32)
    found = text_model.answers.softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0], [1, 0, 0])
    np.testing.assert_allclose(found[1], 1 / 3)


def test_read_text_of_a_bad_row_names_the_row(text_model: Any) -> None:
    reading = text_model.reading
    assert reading.read_text("né".encode(), "the text", 10) == "né"
    with pytest.raises(reading.BadRequest, match="text 3 of 4 is not UTF-8: byte 0xc3 at position 1"):
        reading.read_text(b"n\xc3", text_model.model.name_row("text", 2, 4), 10)
    with pytest.raises(reading.BadRequest, match="too large: 11 bytes"):
        reading.read_text(b"a" * 11, "the text", 10)


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def reader(text_model: Any, minilm: Path, **settings: Any) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    usual = {"pairs": False, "max_length": 16, "long_text": "truncate", "max_windows": 9, "mask": None}
    return text_model.reading.Reader(tokenizer, {**usual, **settings}, spans=True)


@given(
    first=st.integers(1, 60),
    second=st.integers(0, 60),
    max_length=st.integers(5, 40),
)
def test_texts_are_read_and_cut_as_by_the_library(
    text_model: Any, minilm: Path, first: int, second: int, max_length: int
) -> None:
    texts = tuple(" ".join((WORDS * 5)[:count]) for count in (first, second) if count)
    wanted = our_tokenizer(minilm, max_length).encode(texts[:1], texts[1:] or None, spans=True)[0]
    read = reader(text_model, minilm, pairs=len(texts) == 2, max_length=max_length)
    row = read.row(texts, read.pieces(texts), "the text")
    (window,) = row.windows
    assert window.ids == row.tokens.ids == wanted.input_ids
    assert window.types == wanted.token_type_ids
    assert row.truncated == wanted.truncated
    assert [span and tuple(span) for span in row.tokens.spans] == list(wanted.spans)
    assert list(row.tokens.words) == list(wanted.words)


@given(first=st.integers(1, 60), second=st.integers(0, 60), max_length=st.integers(12, 30))
def test_windows_hold_every_token_once_with_context(
    text_model: Any, minilm: Path, first: int, second: int, max_length: int
) -> None:
    texts = tuple(" ".join((WORDS * 5)[:count]) for count in (first, second) if count)
    pairs = len(texts) == 2
    read = reader(text_model, minilm, pairs=pairs, max_length=max_length, long_text="window", max_windows=99)
    space = max_length - read.frame.special - (min(first, second) if pairs else 0)
    if space < 4 and first + second > max_length - read.frame.special:
        with pytest.raises(text_model.reading.BadRequest, match="its shorter text leaves"):
            read.row(texts, read.pieces(texts), "the text")
        return
    row = read.row(texts, read.pieces(texts), "the text")
    whole = our_tokenizer(minilm, 512).encode(texts[:1], texts[1:] or None, spans=True)[0]
    taken = [one for take in row.takes for one in row.windows[take.window].ids[take.start : take.stop]]
    assert taken == row.tokens.ids == whole.input_ids
    assert [span and tuple(span) for span in row.tokens.spans] == list(whole.spans)
    assert not row.truncated
    lengths = {len(window) for window in row.windows}
    assert lengths == {min(max_length, len(whole))}, "no padding"
    # Two windows meet in the middle of what they have in common.
    begin = read.frame.starts([first, second] if pairs else [first])[int(pairs and second > first)]
    for before, after in pairwise(row.takes):
        assert abs((begin + space - before.stop) - (after.start - begin)) <= 1
        assert (begin + space - before.stop) + (after.start - begin) >= space // 4


def our_tokenizer(minilm: Path, max_length: int) -> Any:
    from bertmp.data.tokenizer import Tokenizer

    return Tokenizer.load(minilm, max_length)


def test_a_text_beyond_the_length_is_refused_with_both_lengths(text_model: Any, minilm: Path) -> None:
    texts = (" ".join(WORDS * 2),)
    refuses = reader(text_model, minilm, long_text="refuse")
    with pytest.raises(text_model.reading.BadRequest, match="too long: 26 tokens, the most is 16"):
        refuses.row(texts, refuses.pieces(texts), "the text")
    windows = reader(text_model, minilm, long_text="window", max_windows=1)
    with pytest.raises(text_model.reading.BadRequest, match="it needs 2 windows, the most is 1"):
        windows.row(texts, windows.pieces(texts), "the text")
