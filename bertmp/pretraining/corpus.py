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
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.data.readers import Columns, delimiter_of, is_conll, is_unicode
from bertmp.data.streams import (
    ROW,
    delimited_records,
    named_fields,
    open_text,
    parquet_file,
    parts_of_lines,
    records,
)

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
        return _READERS[self.path.suffix.lower()](self)


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
    if kind not in _READERS:
        raise InputError(f"unknown kind of corpus '{kind}'", path, f"use one of {', '.join(_READERS)}")
    if kind == ".txt":
        if is_conll(path, columns):
            todo = "write its sentences as lines, or train token-classification on it"
            raise InputError("the corpus is a CoNLL file: a word and its tag per line", path, todo)
        return Corpus(path, columns, False, path.stat().st_size)
    if kind == ".parquet":
        with parquet_file(path) as file:
            names, size = file.schema_arrow.names, file.metadata.num_rows
    else:
        names, size = _columns(path, kind, columns), path.stat().st_size
    if columns.text not in names:
        what = f"the corpus has no column '{columns.text}'"
        raise InputError(what, path, "name it in the header or with --text-column")
    return Corpus(path, columns, columns.text_pair in names, size)


def _columns(path: Path, kind: str, columns: Columns) -> list[str]:
    """The names in the header, or the keys of the first object."""
    if kind == ".jsonl":
        with closing(records(path, longest=ROW, encoding=columns.encoding)) as objects:
            return next((list(record) for _, record, _, _ in objects), [])
    with closing(_delimited(path, columns)) as rows:
        names = next((fields for _, fields, _ in rows), [])
    if len(set(names)) != len(names):
        raise InputError("the header names a column twice", path, "rename one of them")
    return names


def _delimited(path: Path, columns: Columns) -> Generator[tuple[int, list[str], int], None, None]:
    return delimited_records(path, delimiter_of(path, columns), ROW, columns.encoding)


def _plain_text(corpus: Corpus) -> Iterator[DocumentChunk]:
    """One sentence per line, blank lines between documents."""
    with open_text(corpus.path, encoding=corpus.columns.encoding) as stream:
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


def _rows_as_chunks(corpus: Corpus) -> Iterator[DocumentChunk]:
    """One document per row."""
    for row, position in _RECORDS[corpus.path.suffix.lower()](corpus):
        text = row.get(corpus.columns.text, "")
        if corpus.pairs:
            yield DocumentChunk((text, row.get(corpus.columns.text_pair, "")), True, position)
            continue
        sentences = [one for one in _SENTENCE_END.split(text) if one and not one.isspace()]
        for first in range(0, len(sentences), CHUNK_SENTENCES):
            yield DocumentChunk(tuple(sentences[first : first + CHUNK_SENTENCES]), first == 0, position)


def _delimited_texts(corpus: Corpus) -> Iterator[tuple[Mapping[str, str], int]]:
    rows = _delimited(corpus.path, corpus.columns)
    _, header, _ = next(rows)
    for line, fields, position in rows:
        yield named_fields(header, fields, f"{corpus.path}, line {line}"), position


def _record_texts(corpus: Corpus) -> Iterator[tuple[Mapping[str, str], int]]:
    columns = corpus.columns
    for _, record, where, position in records(
        corpus.path, (columns.text, columns.text_pair), ROW, columns.encoding
    ):
        yield _texts(record, columns, where), position


def _texts(record: Mapping[str, Any], columns: Columns, where: str) -> Mapping[str, str]:
    """The texts of a record; without those that are null."""
    texts = {}
    for name in (columns.text, columns.text_pair):
        value = record.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise InputError(f"{name} is not text", where, "write one text per row")
        if not is_unicode(value):
            raise InputError(f"half a surrogate pair in {name}", where, "write the whole character")
        texts[name] = value
    return texts


_RECORDS = {
    **dict.fromkeys((".tsv", ".csv"), _delimited_texts),
    **dict.fromkeys((".jsonl", ".parquet"), _record_texts),
}
_READERS = {".txt": _plain_text, **dict.fromkeys(_RECORDS, _rows_as_chunks)}
