"""The files that answers are written to, row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from bertmp.core.errors import InputError
from bertmp.data.text_stream import TextRow

WriteRow = Callable[[Mapping[str, Any]], None]
FORMATS = (".jsonl", ".tsv", ".csv")


def format_of(out: Path) -> str:
    """The kind of file that a name asks for.

    Raises:
        InputError: none of those that are written, or a folder.
    """
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise InputError(f"answers are not written as '{kind}'", out, f"name a file {' or '.join(FORMATS)}")
    if out.is_dir():
        raise InputError("a folder stands there", out, "choose another --out")
    return kind


def check_writable(kind: str, row: TextRow, labels: Sequence[str], where: str) -> None:
    """Checks that a text can be written.

    Raises:
        InputError: the file has a row per line and a column per tab, and the text holds one of them.
    """
    if kind != ".tsv":
        return
    for value in (*row.texts, *labels):
        if any(mark in value for mark in "\t\r\n"):
            what = "a tab or line break, which a .tsv file cannot hold"
            raise InputError(what, where, "write the answers to .jsonl or .csv")


def row_writer(kind: str, stream: TextIO) -> WriteRow:
    """What writes one row to a stream that was opened with `newline=""`.

    In .tsv and .csv the first row's fields make the header; fields of an answer to compare with are columns
    of their own (`against_label`); lists and mappings are JSON.
    """
    if kind == ".jsonl":
        return lambda row: _write_json(stream, row)
    style: dict[str, Any] = {"delimiter": "\t", "lineterminator": "\n"} if kind == ".tsv" else {}
    return _Table(csv.writer(stream, **style)).write


def _write_json(stream: TextIO, row: Mapping[str, Any]) -> None:
    stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


class _Table:
    """Rows under a header."""

    def __init__(self, writer: Any) -> None:
        self._writer, self._header = writer, False

    def write(self, row: Mapping[str, Any]) -> None:
        flat: dict[str, Any] = {}
        for name, value in row.items():
            if name == "against":
                flat |= {f"against_{key}": one for key, one in value.items()}
            else:
                flat[name] = value
        if not self._header:
            self._writer.writerow(flat)
            self._header = True
        self._writer.writerow(_field(value) for value in flat.values())


def _field(value: Any) -> Any:
    return value if isinstance(value, (str, float)) else json.dumps(value, ensure_ascii=False)
