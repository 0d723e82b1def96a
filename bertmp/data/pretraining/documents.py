"""Corpora as streams of documents: a file of any size is read a piece at a time.

- `.txt`: a sentence a line, a blank line between documents.
- `.tsv`, `.csv` with a header that names `text` and `text_pair`: a pair of texts a row, the second of which
  follows the first; with `text` alone: a document a row.
- `.jsonl`, `.parquet`: the same by their names.

A document of one text is split into sentences at line ends and after `.`, `!`, `?` and their wide forms.
All text is UTF-8.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from bertmp.data.pretraining.columns import arrow
from bertmp.data.readers import Columns
from bertmp.errors import InputError

LINE = 1 << 16
"""Characters of a line: a longer one of a `.txt` file is taken as several sentences, so that no line has to
fit into memory."""
ROW = 1 << 24
"""Characters of a row: a longer line of the other formats is refused, since its parts say nothing."""
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
        return _KINDS[self.path.suffix.lower()](self)


def open_corpus(path: Path, columns: Columns) -> Corpus:
    """Looks at a corpus file without reading it.

    Errors: InputError where there is no such file, it is of no known kind or it has no text column.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder that is no prepared corpus" if path.is_dir() else "no such corpus"
        raise InputError(what, path, "name a corpus file or the folder of a prepared one")
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise InputError(f"unknown kind of corpus '{kind}'", path, f"use one of {', '.join(_KINDS)}")
    names, size = _NAMES[kind](path)
    if names is not None and columns.text not in names:
        raise InputError(
            f"the corpus has no column '{columns.text}'", path, "name it in the header or with --text-column"
        )
    return Corpus(path, columns, names is not None and columns.text_pair in names, size)


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """The file as text, line ends as they are."""
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _not_utf8(path: Path) -> InputError:
    """Says where the first byte is that no UTF-8 text has; the stream's own error knows no line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as stream:
        while block := stream.read(1 << 16):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                # A character begun in the block before stands at the front of what the error shows.
                line += error.object[: error.start].count(b"\n")
                byte = error.object[error.start]
                return InputError(
                    f"not UTF-8: byte 0x{byte:02x}", f"{path}, line {line}", "save the file as UTF-8"
                )
            line += block.count(b"\n")
    return InputError("not UTF-8: the last character is cut off", path, "save the file as UTF-8")


def _parts_of_lines(stream: TextIO) -> Iterator[str]:
    """Lines without their ends; longer ones than `LINE` in parts, cut between words where there are any."""
    carried = ""
    while read := stream.readline(LINE):
        text, carried = carried + read, ""
        if not text.endswith("\n") and len(read) == LINE:
            head, blank, tail = text.rpartition(" ")
            text, carried = (head, tail) if blank else (text, "")
        yield text.rstrip("\r\n")
    if carried:
        yield carried


def _whole_lines(stream: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends, and their numbers from 1.

    Errors: InputError for a line of more than `ROW` characters.
    """
    number = 0
    while line := stream.readline(ROW + 1):
        number += 1
        if len(line) > ROW:
            raise InputError(
                f"a line of more than {ROW:,} characters", f"{path}, line {number}", "split its text"
            )
        yield number, line


def _classic(corpus: Corpus) -> Iterator[Piece]:
    """A sentence a line, a blank line between documents."""
    with _text(corpus.path) as stream:
        sentences: list[str] = []
        begins = True
        for line in _parts_of_lines(stream):
            blank = not line.strip()
            if not blank:
                sentences.append(line)
            if sentences and (blank or len(sentences) == SENTENCES):
                yield Piece(tuple(sentences), begins, stream.buffer.tell())
                sentences, begins = [], False
            begins |= blank
        if sentences:
            yield Piece(tuple(sentences), begins, corpus.size)


def _rows_to_pieces(corpus: Corpus, rows: Iterator[tuple[Mapping[str, str], int]]) -> Iterator[Piece]:
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


def _delimited(corpus: Corpus) -> Iterator[Piece]:
    return _rows_to_pieces(corpus, _delimited_rows(corpus))


def _delimited_rows(corpus: Corpus) -> Iterator[tuple[Mapping[str, str], int]]:
    path = corpus.path
    with _text(path) as stream:
        rows = _fields(stream, path)
        _, header = next(rows)
        for line, fields in rows:
            if len(fields) != len(header):
                raise InputError(
                    f"{len(fields)} fields where the header names {len(header)}",
                    f"{path}, line {line}",
                    "mend the line",
                )
            yield dict(zip(header, fields, strict=True)), stream.buffer.tell()


def _fields(stream: TextIO, path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """The fields of each row that is not blank, and the line on which it ends."""
    if path.suffix.lower() == ".tsv":
        for number, line in _whole_lines(stream, path):
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t")
        return
    reader = csv.reader((line for _, line in _whole_lines(stream, path)), strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(
            f"broken CSV: {error}", f"{path}, line {reader.line_num}", "mend the line"
        ) from error


def _json_lines(corpus: Corpus) -> Iterator[Piece]:
    return _rows_to_pieces(corpus, _json_rows(corpus.path, corpus.columns))


def _json_rows(path: Path, columns: Columns) -> Iterator[tuple[Mapping[str, str], int]]:
    with _text(path) as stream:
        for number, line in _whole_lines(stream, path):
            if line.strip():
                where = f"{path}, line {number}"
                yield _strings(_json_object(line, where), columns, where), stream.buffer.tell()


def _json_object(line: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where, "write one JSON object a line") from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where, "write one JSON object a line")
    return value


def _strings(row: Mapping[str, Any], columns: Columns, where: str) -> Mapping[str, str]:
    """The texts of a row; absent where they are null."""
    texts = {}
    for name in (columns.text, columns.text_pair):
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise InputError(f"{name} is no text", where, "write one text a row")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"half a surrogate pair in {name}", where, "write the whole character")
        texts[name] = value
    return texts


def _parquet(corpus: Corpus) -> Iterator[Piece]:
    return _rows_to_pieces(corpus, _parquet_rows(corpus))


def _parquet_rows(corpus: Corpus) -> Iterator[tuple[Mapping[str, str], int]]:
    columns, number = corpus.columns, 0
    names = [columns.text, *([columns.text_pair] if corpus.pairs else [])]
    with _parquet_file(corpus.path) as file:
        for batch in file.iter_batches(batch_size=256, columns=names):
            for record in batch.to_pylist():
                number += 1
                yield _strings(record, columns, f"{corpus.path}, row {number}"), number


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    library = arrow()
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except library.ArrowException as error:
        raise InputError("not a Parquet file, or a damaged one", path, f"replace it ({error})") from error


Look = tuple[Sequence[str] | None, int]
"""The names of a file's columns, None where it has none, and the last position."""


def _look_at_text(path: Path) -> Look:
    return None, path.stat().st_size


def _look_at_header(path: Path) -> Look:
    with _text(path) as stream:
        _, names = next(_fields(stream, path), (0, ()))
    if names and len(set(names)) != len(names):
        raise InputError("the header names a column twice", path, "rename one of them")
    return names, path.stat().st_size


def _look_at_json(path: Path) -> Look:
    with _text(path) as stream:
        for number, line in _whole_lines(stream, path):
            if line.strip():
                return list(_json_object(line, f"{path}, line {number}")), path.stat().st_size
    return (), 0


def _look_at_parquet(path: Path) -> Look:
    with _parquet_file(path) as file:
        return file.schema_arrow.names, file.metadata.num_rows


_KINDS: dict[str, Callable[[Corpus], Iterator[Piece]]] = {
    ".txt": _classic,
    ".tsv": _delimited,
    ".csv": _delimited,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
_NAMES: dict[str, Callable[[Path], Look]] = {
    ".txt": _look_at_text,
    ".tsv": _look_at_header,
    ".csv": _look_at_header,
    ".jsonl": _look_at_json,
    ".parquet": _look_at_parquet,
}
