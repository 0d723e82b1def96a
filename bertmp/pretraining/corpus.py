"""Corpora as streams of documents: a file of any size is read in chunks.

- `.txt`: one sentence per line, blank lines between documents.
- `.tsv`, `.csv` with columns `text` and `text_pair`: one pair of texts per row, the second following the
  first; with `text` only: one document per row.
- `.jsonl`, `.parquet`: likewise.

A document in one row is split into sentences at line ends and after `.`, `!`, `?` and their wide forms.
All text is UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.data.readers import Columns
from bertmp.data.record_stream import (
    Look,
    Row,
    delimited_rows,
    header_columns,
    json_columns,
    json_rows,
    parquet_columns,
    parquet_rows,
)
from bertmp.data.text_stream import open_text, parts_of_lines

CHUNK_SENTENCES = 1024
"""The most sentences in a chunk of a document."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[\u3002\uff01\uff1f])\s*|[\r\n]+")


@dataclass(frozen=True)
class DocumentChunk:
    """Consecutive sentences of a document.

    Attributes:
        sentences: the sentences; of a pair, both texts.
        begins: whether a document begins here.
        position: bytes read of the file, or rows of a Parquet file.
    """

    sentences: tuple[str, ...]
    begins: bool
    position: int


@dataclass(frozen=True)
class Corpus:
    """A corpus file.

    Attributes:
        path: the file.
        columns: names of its columns.
        pairs: whether its documents are pairs of texts.
        size: `DocumentChunk.position` at the end.
    """

    path: Path
    columns: Columns
    pairs: bool
    size: int

    def chunks(self) -> Iterator[DocumentChunk]:
        """Reads the documents in chunks.

        Raises:
            InputError: the file is not UTF-8, a row is too long or lacks fields, or a value is not text.
        """
        return _KINDS[self.path.suffix.lower()].read(self)


def open_corpus(path: Path, columns: Columns) -> Corpus:
    """Opens a corpus file and reads its column names.

    Raises:
        InputError: there is no such file, its kind is unknown or it has no text column.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder that is not a prepared corpus" if path.is_dir() else "no such corpus"
        raise InputError(what, path, "name a corpus file or the folder of a prepared one")
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise InputError(f"unknown kind of corpus '{kind}'", path, f"use one of {', '.join(_KINDS)}")
    names, size = _KINDS[kind].look(path)
    if names is not None and columns.text not in names:
        raise InputError(
            f"the corpus has no column '{columns.text}'", path, "name it in the header or with --text-column"
        )
    return Corpus(path, columns, names is not None and columns.text_pair in names, size)


def _plain_text(corpus: Corpus) -> Iterator[DocumentChunk]:
    """One sentence per line, blank lines between documents."""
    with open_text(corpus.path) as stream:
        sentences: list[str] = []
        begins = True
        for line in parts_of_lines(stream):
            blank = not line.strip()
            if not blank:
                sentences.append(line)
            if sentences and (blank or len(sentences) == CHUNK_SENTENCES):
                yield DocumentChunk(tuple(sentences), begins, stream.buffer.tell())
                sentences, begins = [], False
            begins |= blank
        if sentences:
            yield DocumentChunk(tuple(sentences), begins, corpus.size)


def _chunks_of_rows(corpus: Corpus, rows: Iterable[Row]) -> Iterator[DocumentChunk]:
    columns = corpus.columns
    for row, position in rows:
        text = row.get(columns.text, "")
        if corpus.pairs:
            yield DocumentChunk((text, row.get(columns.text_pair, "")), True, position)
            continue
        sentences = split_sentences(text)
        for first in range(0, len(sentences), CHUNK_SENTENCES):
            yield DocumentChunk(tuple(sentences[first : first + CHUNK_SENTENCES]), first == 0, position)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; see the module's docstring."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence and not sentence.isspace()]


def _look_at_text(path: Path) -> Look:
    return None, path.stat().st_size


def _delimited(corpus: Corpus) -> Iterator[DocumentChunk]:
    return _chunks_of_rows(corpus, delimited_rows(corpus.path))


def _json_lines(corpus: Corpus) -> Iterator[DocumentChunk]:
    return _chunks_of_rows(corpus, json_rows(corpus.path, corpus.columns))


def _parquet(corpus: Corpus) -> Iterator[DocumentChunk]:
    return _chunks_of_rows(corpus, parquet_rows(corpus.path, corpus.columns, corpus.pairs))


@dataclass(frozen=True)
class _Kind:
    """How files of one extension are opened and read."""

    look: Callable[[Path], Look]
    read: Callable[[Corpus], Iterator[DocumentChunk]]


_KINDS = {
    ".txt": _Kind(_look_at_text, _plain_text),
    ".tsv": _Kind(header_columns, _delimited),
    ".csv": _Kind(header_columns, _delimited),
    ".jsonl": _Kind(json_columns, _json_lines),
    ".parquet": _Kind(parquet_columns, _parquet),
}
