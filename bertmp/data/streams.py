"""Data files as streams, in bounded memory: lines of text, JSON lines, TSV, CSV and Parquet."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bertmp.core.errors import InputError, MissingComponent

Record = dict[str, Any]

csv.field_size_limit(2**31 - 1)  # Python's own limit of 131,072 characters is below a long document

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and the encodings that they name; UTF-32's begins with UTF-16's."""


def check_format(encoding: str | None, delimiter: str | None) -> None:
    """Checks the names that a user gave.

    Raises:
        InputError: an unknown encoding, or a delimiter that is not one character.
    """
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        todo = "use a name such as utf-8, utf-16, cp1252 or latin-1"
        raise InputError(f"unknown encoding '{encoding}'", "--encoding", todo) from error
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '\r\n"'):
        raise InputError(
            f"the delimiter {delimiter!r} is not one character", "--delimiter", "use one such as ;"
        )


def encoding_of(path: Path) -> str:
    """The encoding that a file's byte order mark names; UTF-8 without one."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def records(
    path: Path, columns: Sequence[str] = (), longest: int | None = None, encoding: str | None = None
) -> Generator[tuple[int, Record, str, int]]:
    """The objects of a file with one JSON object per line, or the rows of a Parquet file.

    Args:
        path: the file; its extension tells the format.
        columns: those of a Parquet file that are read, where it has them.
        longest: the most characters of a line of JSON.
        encoding: see `open_text`.

    Yields:
        The line or row, counted from 1; the record; its place, for messages; the bytes or rows read so far.

    Raises:
        InputError: the file is damaged or not UTF-8, or a line is too long or not a JSON object.
        MissingComponent: pyarrow is not installed.
    """
    number = 0
    if path.suffix.lower() == ".parquet":
        with parquet_file(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=256, columns=names):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record, f"{path}, row {number}", number
        return
    with open_text(path, encoding=encoding) as stream:
        for number, line in numbered_lines(stream, path, longest):
            if line.strip():
                where = f"{path}, line {number}"
                yield number, _json_object(line.rstrip("\n"), where), where, stream.buffer.tell()


def _json_object(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where, "write one JSON object per line") from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where, "write one JSON object per line")
    return value


def delimited_records(
    path: Path, delimiter: str | None = None, longest: int | None = None, encoding: str | None = None
) -> Generator[tuple[int, list[str], int]]:
    """The rows of a TSV file, or of a CSV file, whose fields may be quoted; without blank rows.

    Args:
        path: the file.
        delimiter: of a CSV file; None for a TSV file, whose rows are lines: a field that stands in quotes is
            read without them, as pandas and spreadsheets write it; other quotes are text.
        longest: the most characters of a line.
        encoding: see `open_text`.

    Yields:
        The line on which the row ends, its fields, and the bytes read so far.

    Raises:
        InputError: the file is not UTF-8, a line is too long, or quotes are not closed.
    """
    with open_text(path, "\n" if delimiter is None else "", encoding) as stream:
        lines = numbered_lines(stream, path, longest)
        if delimiter is None:
            for number, line in lines:
                if line.strip():
                    fields = [_unquoted(field) for field in line.rstrip("\r\n").split("\t")]
                    yield number, fields, stream.buffer.tell()
            return
        reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if any(field.strip() for field in row):
                    yield reader.line_num, row, stream.buffer.tell()
        except csv.Error as error:
            where = f"{path}, line {reader.line_num}"
            raise InputError(f"broken CSV: {error}", where, "fix the line") from error


_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _unquoted(field: str) -> str:
    """A field without the quotes around it; as it is where quotes inside are not doubled."""
    match = _QUOTED.fullmatch(field) if field.startswith('"') else None
    return match[1].replace('""', '"') if match else field


def named_fields(header: Sequence[str], values: Sequence[str], where: str) -> dict[str, str]:
    """The fields of a row by the names in the header.

    Raises:
        InputError: the row has more or fewer fields.
    """
    if len(values) != len(header):
        raise InputError(f"{len(values)} fields where the header names {len(header)}", where, "fix the line")
    return dict(zip(header, values, strict=True))


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """An open `pyarrow.parquet.ParquetFile`.

    Raises:
        InputError: the file is not Parquet, or damaged.
        MissingComponent: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        todo = "pip install pyarrow, or give the data as .jsonl"
        raise MissingComponent("pyarrow is not installed", path, todo) from error
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise InputError("not a Parquet file, or a damaged one", path, f"replace it ({error})") from error


LINE = 1 << 16
"""Characters of a line of a `.txt` corpus: a longer line is split into several sentences."""
ROW = 1 << 24
"""Characters of a line of the other corpora: a longer line is refused."""


@contextmanager
def open_text(path: Path, newline: str = "\n", encoding: str | None = None) -> Iterator[TextIO]:
    """Opens a text file with untranslated line ends; `newline` as for `open`.

    Args:
        encoding: the file's; None for the one that a byte order mark names, else UTF-8.

    Raises:
        InputError: bytes of another encoding; for UTF-8 their line is named.
    """
    encoding = encoding or encoding_of(path)
    with path.open(encoding=encoding, newline=newline) as stream:
        try:
            yield stream
        except UnicodeError as error:
            if encoding in ("utf-8", "utf-8-sig"):
                raise _not_utf8(path) from error
            raise InputError(f"not {encoding}: {error}", path, "name its encoding with --encoding") from error


_NAME_IT = "name its encoding with --encoding, such as cp1252, or save it as UTF-8"


def _not_utf8(path: Path) -> InputError:
    """The error with the line of the first invalid byte, which the stream's own error does not have."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as stream:
        while block := stream.read(1 << 16):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                # `error.object` starts with a character that began in the previous block.
                line += error.object[: error.start].count(b"\n")
                what = f"not UTF-8: byte 0x{error.object[error.start]:02x}"
                return InputError(what, f"{path}, line {line}", _NAME_IT)
            line += block.count(b"\n")
    return InputError("not UTF-8: the last character is cut off", path, _NAME_IT)


def parts_of_lines(stream: TextIO) -> Iterator[str]:
    """Lines without line ends; lines longer than `LINE` in parts, split between words if possible."""
    carried = ""
    while read := stream.readline(LINE):
        text, carried = carried + read, ""
        if not text.endswith("\n") and len(read) == LINE:
            head, blank, tail = text.rpartition(" ")
            text, carried = (head, tail) if blank else (text, "")
        yield text.rstrip("\r\n")
    if carried:
        yield carried


def numbered_lines(stream: TextIO, path: Path, longest: int | None = None) -> Iterator[tuple[int, str]]:
    """Lines with line ends, and their numbers from 1.

    Raises:
        InputError: a line of more than `longest` characters.
    """
    limit = -1 if longest is None else longest + 1
    for number, line in enumerate(iter(lambda: stream.readline(limit), ""), 1):
        if longest is not None and len(line) > longest:
            what = f"a line of more than {longest:,} characters"
            raise InputError(what, f"{path}, line {number}", "split its text")
        yield number, line
