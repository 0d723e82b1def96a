"""Records of the formats with columns, as streams: JSON lines, TSV, CSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bertmp.core.errors import InputError, MissingComponent
from bertmp.data.text_stream import numbered_lines, open_text

Record = dict[str, Any]


def json_records(path: Path, longest: int | None = None) -> Generator[tuple[int, Record, int]]:
    """The objects of a file with one JSON object per line.

    Args:
        path: the file.
        longest: the most characters of a line.

    Yields:
        The line, the object, and the bytes read so far.

    Raises:
        InputError: the file is not UTF-8, or a line is too long or not a JSON object.
    """
    with open_text(path) as stream:
        for number, line in numbered_lines(stream, path, longest):
            if line.strip():
                yield number, _json_object(line.rstrip("\n"), f"{path}, line {number}"), stream.buffer.tell()


def _json_object(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where, "write one JSON object per line") from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", where, "write one JSON object per line")
    return value


def delimited_records(
    path: Path, delimiter: str | None = None, longest: int | None = None
) -> Generator[tuple[int, list[str], int]]:
    """The rows of a TSV file, or of a CSV file, whose fields may be quoted; without blank rows.

    Args:
        path: the file.
        delimiter: of a CSV file; None for a TSV file.
        longest: the most characters of a line.

    Yields:
        The line on which the row ends, its fields, and the bytes read so far.

    Raises:
        InputError: the file is not UTF-8, a line is too long, or quotes are not closed.
    """
    with open_text(path, "\n" if delimiter is None else "") as stream:
        for number, fields in _fields(stream, path, delimiter, longest):
            yield number, fields, stream.buffer.tell()


def _fields(
    stream: TextIO, path: Path, delimiter: str | None, longest: int | None
) -> Iterator[tuple[int, list[str]]]:
    lines = numbered_lines(stream, path, longest)
    if delimiter is None:
        yield from ((number, line.rstrip("\r\n").split("\t")) for number, line in lines if line.strip())
        return
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"broken CSV: {error}", f"{path}, line {reader.line_num}", "fix the line") from error


def named_fields(header: Sequence[str], values: Sequence[str], where: str) -> dict[str, str]:
    """The fields of a row by the names in the header.

    Raises:
        InputError: the row has more or fewer fields.
    """
    if len(values) != len(header):
        raise InputError(f"{len(values)} fields where the header names {len(header)}", where, "fix the line")
    return dict(zip(header, values, strict=True))


def parquet_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
    """The rows of a Parquet file, counted from 1, with those of `columns` that it has.

    Raises:
        InputError: the file is not Parquet, or damaged.
        MissingComponent: pyarrow is not installed.
    """
    number = 0
    with parquet_file(path) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=256, columns=names):
            for record in batch.to_pylist():
                number += 1
                yield number, record


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
        raise MissingComponent(
            "pyarrow is not installed", path, "pip install pyarrow, or give the data as .jsonl"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise InputError("not a Parquet file, or a damaged one", path, f"replace it ({error})") from error
