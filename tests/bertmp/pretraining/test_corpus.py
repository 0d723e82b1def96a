"""Corpora: how each format is read, what a prepared one holds, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bertmp import prepare
from bertmp.core.errors import InputError
from bertmp.core.progress import ProgressCallback
from bertmp.data.readers import Columns
from bertmp.data.tokenizer import Tokenizer
from bertmp.pretraining.corpus import CHUNK_SENTENCES, Corpus, DocumentChunk, open_corpus
from bertmp.pretraining.prepare import MAX_SENTENCE_TOKENS, tokenized
from bertmp.pretraining.token_store import CHUNK, Column, ColumnWriter, Store
from tests.conftest import RunBertmp

STORY = "The first sentence.\nThe second one.\n\n\nAnother document.\r\n  \nA third.\nIts end."
STORY_DOCUMENTS = [
    ["the first sentence .", "the second one ."],
    ["another document ."],
    ["a third .", "its end ."],
]


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> Tokenizer:
    return Tokenizer.load(minilm, 64)


def contents(store: Store, tokenizer: Tokenizer) -> list[list[str]]:
    """The documents of a prepared corpus, as the tokens of their sentences."""
    tokens = tokenizer.tokens()
    starts = store.sentences.slice(0, len(store.sentences)).tolist()
    bounds = store.documents.slice(0, len(store.documents)).tolist()
    sentences = [
        " ".join(tokens[number] for number in store.tokens.slice(start, end))
        for start, end in pairwise(starts)
    ]
    return [sentences[first:last] for first, last in pairwise(bounds)]


def prepared(path: Path, folder: Path, minilm: Path, tokenizer: Tokenizer, **options: Any) -> list[list[str]]:
    result = prepare(path, minilm, folder, num_workers=1, **options)
    store = Store.open(folder, tokenizer)
    assert store.counts == result.counts
    return contents(store, tokenizer)


class TestFormats:
    def test_sentences_a_line(self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        path = tmp_path / "story.txt"
        path.write_text(STORY, encoding="utf-8-sig", newline="")
        assert prepared(path, tmp_path / "store", minilm, tokenizer) == STORY_DOCUMENTS

    @pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv", "pairs.jsonl", "pairs.parquet"])
    def test_pairs(self, name: str, minilm: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        rows = [("How are you? Well?", "Fine."), ("Who?", ""), ("Where?", "There.")]
        path = write_rows(tmp_path / name, ("text", "text_pair"), rows)
        assert prepared(path, tmp_path / "store", minilm, tokenizer) == [
            ["how are you ? well ?", "fine ."],
            ["where ?", "there ."],
        ]
        manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
        assert manifest["pairs"] is True
        assert manifest["counts"]["dropped"] == 1
        assert manifest["tokenizer"] == tokenizer.fingerprint()

    @pytest.mark.parametrize("name", ["texts.tsv", "texts.csv", "texts.jsonl", "texts.parquet"])
    def test_a_document_a_row(self, name: str, minilm: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
        rows = [("1", "One sentence. Another! “A third?” Yes"), ("2", ""), ("3", "中。大\uff01")]
        path = write_rows(tmp_path / name, ("id", "body"), rows)
        assert prepared(path, tmp_path / "store", minilm, tokenizer, text_column="body") == [
            ["one sentence .", "another !", "“ a third ? ” yes"],
            ["中 。", "大 \uff01"],
        ]

    def test_lines_of_a_text_column_are_sentences(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        path = tmp_path / "texts.jsonl"
        path.write_text(json.dumps({"text": "a line\nanother\r\n\nthe last"}) + "\n")
        assert prepared(path, tmp_path / "store", minilm, tokenizer) == [["a line", "another", "the last"]]

    def test_a_document_longer_than_a_piece_stays_one(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        path = tmp_path / "long.txt"
        path.write_text("word\n" * (2 * CHUNK_SENTENCES + 5) + "\nend\n")
        assert [len(chunk.sentences) for chunk in open_corpus(path, Columns()).chunks()] == [
            *(CHUNK_SENTENCES, CHUNK_SENTENCES, 5, 1)
        ]
        documents = prepared(path, tmp_path / "store", minilm, tokenizer)
        assert [len(document) for document in documents] == [2 * CHUNK_SENTENCES + 5, 1]

    def test_a_piece_without_tokens_does_not_join_its_neighbours(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        path = tmp_path / "odd.txt"
        path.write_text("one\n\n\u200b\n\n" + "\u200b\n" * CHUNK_SENTENCES + "two\n\nthree\n")
        assert prepared(path, tmp_path / "store", minilm, tokenizer) == [["one"], ["two"], ["three"]]

    def test_a_line_of_a_million_characters_is_taken_as_several_sentences(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        path = tmp_path / "line.txt"
        path.write_text("word " * 200_000 + "\n\nend")
        (long, end) = prepared(path, tmp_path / "store", minilm, tokenizer)
        assert end == ["end"]
        assert max(len(sentence.split()) for sentence in long) == MAX_SENTENCE_TOKENS
        assert sum(len(sentence.split()) for sentence in long) == 200_000

    def test_a_million_characters_without_a_blank(
        self, minilm: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        path = tmp_path / "line.txt"
        path.write_text("é" * 1_000_000 + "\nend")
        documents = prepared(path, tmp_path / "store", minilm, tokenizer)
        assert documents[0][-1] == "end"


def write_rows(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    records = [dict(zip(header, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text("".join(mark.join(row) + "\n" for row in (header, *rows)))
    return path


class TestColumns:
    def test_they_give_back_what_was_written(self, tmp_path: Path) -> None:
        values = np.arange(2 * CHUNK + 77) % 50_000
        writer = ColumnWriter(tmp_path / "x.arrow", "x", np.dtype(np.uint16))
        for first in range(0, len(values), 700_001):
            writer.append(values[first : first + 700_001])
        writer.close()
        column = Column(tmp_path / "x.arrow")
        assert len(column) == len(values)
        for start, stop in (
            (0, 5),
            (CHUNK - 3, CHUNK + 4),
            (5, 2 * CHUNK + 9),
            (len(values) - 1, len(values)),
        ):
            np.testing.assert_array_equal(column.slice(start, stop), values[start:stop])
        places = np.random.default_rng(0).integers(0, len(values), 1000)
        np.testing.assert_array_equal(column.take(places), values[places])
        assert len(column.slice(7, 7)) == 0


class TestPreparation:
    def test_the_number_of_processes_changes_nothing(
        self, moviedialog: Path, minilm: Path, tmp_path: Path
    ) -> None:
        path = head(moviedialog / "pairs.tsv", tmp_path / "pairs.tsv", 6000)
        prepare(path, minilm, tmp_path / "one", num_workers=1)
        seen: list[int] = []
        prepare(path, minilm, tmp_path / "two", num_workers=2, progress=collecting(seen))
        for name in ("tokens.arrow", "sentences.arrow", "documents.arrow", "manifest.json"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert seen == sorted(seen)
        assert len(seen) > 1
        assert seen[-1] == path.stat().st_size
        assert not multiprocessing.active_children()

    def test_the_command(self, minilm: Path, tmp_path: Path, run_bertmp: RunBertmp) -> None:
        (tmp_path / "story.txt").write_text(STORY)
        done = run_bertmp(
            *("prepare", tmp_path / "story.txt", "--model", minilm, "--out", tmp_path / "store", "--json")
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["documents"], result["sentences"], result["tokens"]) == (3, 5, 17)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "story.txt"]

    def test_something_else_is_not_overwritten(self, minilm: Path, tmp_path: Path) -> None:
        (tmp_path / "story.txt").write_text(STORY)
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match="holds something that is not a prepared corpus"):
            prepare(tmp_path / "story.txt", minilm, tmp_path / "thesis")
        assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"

    def test_ctrl_c_leaves_nothing(self, moviedialog: Path, minilm: Path, tmp_path: Path) -> None:
        lines = (moviedialog / "pairs.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        path = tmp_path / "pairs.tsv"
        path.write_text("".join(lines[:1] + lines[1:] * 10), encoding="utf-8")
        command = ["prepare", path, "--model", minilm, "--out", tmp_path / "store", "--num-workers", "2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "bertmp", *map(str, command)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            until(lambda: process.poll() is not None or any(tmp_path.glob(".store.*/tokens.arrow")))
            until(lambda: len(children(process.pid)) >= 2)
            workers = children(process.pid)
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does: all of them get it
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
        assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.tsv"]
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_file_is_read_no_further_than_the_work_under_way(
        self, workers: int, moviedialog: Path, tokenizer: Tokenizer
    ) -> None:
        whole = open_corpus(moviedialog / "pairs.tsv", Columns())
        corpus = CountedCorpus(whole.path, whole.columns, whole.pairs, whole.size)
        with closing(tokenized(corpus, tokenizer, workers)) as groups:
            first, _ = next(groups)
            per_group = len(first[3])
            assert 0 < corpus.read[0] < (2 * workers + 3) * per_group < 64_000

    def test_memory_does_not_grow_with_the_corpus(
        self, moviedialog: Path, minilm: Path, tmp_path: Path
    ) -> None:
        lines = (moviedialog / "pairs.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        peaks = []
        for times in (1, 10):
            path = tmp_path / f"{times}.tsv"
            path.write_text("".join(lines[:1] + lines[1:6001] * times), encoding="utf-8")
            peaks.append(peak_of_preparing(path, minilm, tmp_path / f"store-{times}"))
        assert peaks[1] - peaks[0] < 16 << 20  # the corpus grew by 4.5 MB of text, the store by 2.5 MB


@dataclass(frozen=True)
class CountedCorpus(Corpus):
    """A corpus that counts the pieces that were read."""

    read: list[int] = field(default_factory=lambda: [0])

    def chunks(self) -> Iterator[DocumentChunk]:
        for chunk in super().chunks():
            self.read[0] += 1
            yield chunk


def peak_of_preparing(path: Path, minilm: Path, out: Path) -> int:
    """Peak resident bytes of a process that prepares a corpus by itself."""
    code = (
        "import resource, sys; from pathlib import Path; from bertmp import prepare;"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), num_workers=1);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(minilm), str(out)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def head(source: Path, target: Path, lines: int) -> Path:
    """The first lines of a file."""
    with source.open(encoding="utf-8") as stream, target.open("w", encoding="utf-8") as out:
        out.writelines(line for _, line in zip(range(lines), stream, strict=False))
    return target


def collecting(seen: list[int]) -> ProgressCallback:
    def progress(message: str, completed: int | None = None, total: int | None = None, /) -> None:
        assert completed is not None
        seen.append(completed)

    return progress


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


BAD_CORPORA = {
    "the corpus is one sentence": ("one.txt", b"Only one sentence.\n"),
    "the corpus has no text": ("blank.txt", b"\n  \n\r\n\n"),
    "no data at all": ("empty.txt", b""),
    "not UTF-8: byte 0xe9": ("latin.txt", "fine\n\ncafé\n".encode("latin-1")),
    "not UTF-8: the last character is cut off": ("cut.txt", "fine\n\ncafé".encode()[:-1]),
    "unknown kind of corpus '.doc'": ("x.doc", b"text"),
    "the corpus has no column 'text'": ("x.tsv", b"one\ttwo\na\tb\n"),
    "3 fields where the header names 2": ("y.tsv", b"text\ttext_pair\na\tb\tc\n"),
    "not JSON": ("x.jsonl", b'{"text": "a"}\n{oops\n'),
    "text is not text": ("y.jsonl", b'{"text": "a"}\n{"text": [1]}\n'),
    "half a surrogate pair in text": ("z.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n'),
    "not a Parquet file, or a damaged one": ("x.parquet", b"PAR1 nothing"),
    "a line of more than": ("long.tsv", b"text\ttext_pair\na\t" + b"x" * ((1 << 24) + 1)),
}


@pytest.mark.parametrize("message", BAD_CORPORA)
def test_a_bad_corpus_is_refused_and_nothing_is_left(message: str, minilm: Path, tmp_path: Path) -> None:
    name, data = BAD_CORPORA[message]
    (tmp_path / name).write_bytes(data)
    expected = "the corpus has no text" if message == "no data at all" else message
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / name, minilm, tmp_path / "store")
    assert expected in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bytes_that_are_not_utf8_are_named_with_their_line(minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"fine \xc3\xa9\n" * 30_000 + b"caf\xe9\n")
    with pytest.raises(InputError, match=r"byte 0xe9 \(.*x.txt, line 30001\)"):
        prepare(tmp_path / "x.txt", minilm, tmp_path / "store", num_workers=2)


class TestDamage:
    @pytest.fixture
    def store(self, minilm: Path, tmp_path: Path) -> Path:
        (tmp_path / "story.txt").write_text(STORY)
        return prepare(tmp_path / "story.txt", minilm, tmp_path / "store").store

    def test_another_tokenizer(self, store: Path, minilm: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        words = (minilm / "vocab.txt").read_text(encoding="utf-8").split("\n")
        words[2000], words[2001] = words[2001], words[2000]
        (other / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        with pytest.raises(InputError, match="prepared with another tokenizer"):
            Store.open(store, Tokenizer.load(other))

    @pytest.mark.parametrize("name", ["tokens.arrow", "sentences.arrow", "documents.arrow"])
    def test_a_file_that_is_cut_short(self, name: str, store: Path, tokenizer: Tokenizer) -> None:
        with (store / name).open("r+b") as stream:
            stream.truncate((store / name).stat().st_size - 9)
        with pytest.raises(InputError, match=f"cut short .*{name}"):
            Store.open(store, tokenizer)

    def test_a_bit_that_flipped(self, store: Path, tokenizer: Tokenizer) -> None:
        data = bytearray((store / "tokens.arrow").read_bytes())
        data[len(data) // 2] ^= 4
        (store / "tokens.arrow").write_bytes(data)
        with pytest.raises(InputError, match="is damaged"):
            Store.open(store, tokenizer)

    def test_a_file_that_is_gone(self, store: Path, tokenizer: Tokenizer) -> None:
        (store / "documents.arrow").unlink()
        with pytest.raises(InputError, match="lacks a file"):
            Store.open(store, tokenizer)

    def test_a_manifest_of_something_else(self, store: Path, tokenizer: Tokenizer) -> None:
        (store / "manifest.json").write_text('{"stage": "export"}')
        with pytest.raises(InputError, match="not a prepared corpus"):
            Store.open(store, tokenizer)
        shutil.rmtree(store)


def test_a_conll_file_is_no_corpus_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Anna B-PER\nsings O\n\nin O\nLima B-LOC\n")
    with pytest.raises(InputError, match="the corpus is a CoNLL file"):
        open_corpus(path, Columns())
