"""Rows of the formats that have columns, as a stream."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bertmp.core.errors import InputError
from bertmp.data.arrow_column import arrow
from bertmp.data.readers import Columns
from bertmp.data.text_stream import open_text, whole_lines

Row = tuple[Mapping[str, str], int]
"""The texts of a row by their columns' names, and how far the file is read with it."""

Look = tuple[Sequence[str] | None, int]
"""The names of a file's columns, None where it has none, and the position at its end."""


def delimited_rows(path: Path) -> Iterator[Row]:
    """The rows of a TSV or CSV file with a header.

    Errors: InputError for text that is not UTF-8, a row of other fields than the header's, broken quotes.
    """
    with open_text(path) as stream:
        rows = _fields(stream, path)
        _, header = next(rows)
        for line, fields in rows:
            if len(fields) != len(header):
                raise InputError(
                    f"{len(fields)} fields where the header names {len(header)}",
                    f"{path}, line {line}",
                    "fix the line",
                )
            yield dict(zip(header, fields, strict=True)), stream.buffer.tell()


def _fields(stream: TextIO, path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """The fields of each row that is not blank, and the line on which it ends."""
    if path.suffix.lower() == ".tsv":
        for number, line in whole_lines(stream, path):
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t")
        return
    reader = csv.reader((line for _, line in whole_lines(stream, path)), strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"broken CSV: {error}", f"{path}, line {reader.line_num}", "fix the line") from error


def json_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file of one JSON object a line.

    Errors: InputError for text that is not UTF-8, lines that are no object, values that are no text.
    """
    with open_text(path) as stream:
        for number, line in whole_lines(stream, path):
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


def parquet_rows(path: Path, columns: Columns, pairs: bool) -> Iterator[Row]:
    """The rows of a Parquet file, a few hundred in memory at a time; the second text only where `pairs`.

    Errors: InputError for a damaged file, values that are no text.
    """
    number = 0
    names = [columns.text, *([columns.text_pair] if pairs else [])]
    with _parquet_file(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=names):
            for record in batch.to_pylist():
                number += 1
                yield _strings(record, columns, f"{path}, row {number}"), number


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    library = arrow()
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except library.ArrowException as error:
        raise InputError("not a Parquet file, or a damaged one", path, f"replace it ({error})") from error


def header_columns(path: Path) -> Look:
    """The names in a header."""
    with open_text(path) as stream:
        _, names = next(_fields(stream, path), (0, ()))
    if names and len(set(names)) != len(names):
        raise InputError("the header names a column twice", path, "rename one of them")
    return names, path.stat().st_size


def json_columns(path: Path) -> Look:
    """The keys of the first object."""
    with open_text(path) as stream:
        for number, line in whole_lines(stream, path):
            if line.strip():
                return list(_json_object(line, f"{path}, line {number}")), path.stat().st_size
    return (), 0


def parquet_columns(path: Path) -> Look:
    """The columns of the schema."""
    with _parquet_file(path) as file:
        return file.schema_arrow.names, file.metadata.num_rows
