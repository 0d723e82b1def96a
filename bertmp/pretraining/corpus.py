"""Corpora as streams of documents: a file of any size is read a piece at a time.

- `.txt`: a sentence a line, a blank line between documents.
- `.tsv`, `.csv` with a header that names `text` and `text_pair`: a pair of texts a row, the second of which
  follows the first; with `text` alone: a document a row.
- `.jsonl`, `.parquet`: the same by their names.

A document of one text is split into sentences at line ends and after `.`, `!`, `?` and their wide forms.
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

SENTENCES = 1024
"""Sentences of one piece of a document."""

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[\u3002\uff01\uff1f])\s*|[\r\n]+")


@dataclass(frozen=True)
class Piece:
    """Some sentences of a document, in their order.

    Attributes:
        sentences: of a pair, both texts.
        begins: whether a document begins here, and not one goes on.
        position: how far the file is read: bytes, or rows of a Parquet file.
    """

    sentences: tuple[str, ...]
    begins: bool
    position: int


@dataclass(frozen=True)
class Corpus:
    """A corpus file, seen from outside.

    Attributes:
        path: the file.
        columns: the names of its columns.
        pairs: whether its documents are pairs of texts.
        size: what `Piece.position` comes to at the end.
    """

    path: Path
    columns: Columns
    pairs: bool
    size: int

    def pieces(self) -> Iterator[Piece]:
        """The documents, a piece at a time.

        Errors: InputError for bytes that are not UTF-8, a row that is cut short or too long, or a text that
        is none.
        """
        return _KINDS[self.path.suffix.lower()].read(self)


def open_corpus(path: Path, columns: Columns) -> Corpus:
    """Looks at a corpus file without reading it.

    Errors: InputError where there is no such file, it is of no known kind or it has no text column.
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


def _classic(corpus: Corpus) -> Iterator[Piece]:
    """A sentence a line, a blank line between documents."""
    with open_text(corpus.path) as stream:
        sentences: list[str] = []
        begins = True
        for line in parts_of_lines(stream):
            blank = not line.strip()
            if not blank:
                sentences.append(line)
            if sentences and (blank or len(sentences) == SENTENCES):
                yield Piece(tuple(sentences), begins, stream.buffer.tell())
                sentences, begins = [], False
            begins |= blank
        if sentences:
            yield Piece(tuple(sentences), begins, corpus.size)


def _to_pieces(corpus: Corpus, rows: Iterable[Row]) -> Iterator[Piece]:
    columns = corpus.columns
    for row, position in rows:
        text = row.get(columns.text, "")
        if corpus.pairs:
            yield Piece((text, row.get(columns.text_pair, "")), True, position)
            continue
        sentences = split_sentences(text)
        for first in range(0, len(sentences), SENTENCES):
            yield Piece(tuple(sentences[first : first + SENTENCES]), first == 0, position)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, as the module says."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence and not sentence.isspace()]


def _look_at_text(path: Path) -> Look:
    return None, path.stat().st_size


def _delimited(corpus: Corpus) -> Iterator[Piece]:
    return _to_pieces(corpus, delimited_rows(corpus.path))


def _json_lines(corpus: Corpus) -> Iterator[Piece]:
    return _to_pieces(corpus, json_rows(corpus.path, corpus.columns))


def _parquet(corpus: Corpus) -> Iterator[Piece]:
    return _to_pieces(corpus, parquet_rows(corpus.path, corpus.columns, corpus.pairs))


@dataclass(frozen=True)
class _Kind:
    """How files of one ending are looked at and read."""

    look: Callable[[Path], Look]
    read: Callable[[Corpus], Iterator[Piece]]


_KINDS = {
    ".txt": _Kind(_look_at_text, _classic),
    ".tsv": _Kind(header_columns, _delimited),
    ".csv": _Kind(header_columns, _delimited),
    ".jsonl": _Kind(json_columns, _json_lines),
    ".parquet": _Kind(parquet_columns, _parquet),
}
