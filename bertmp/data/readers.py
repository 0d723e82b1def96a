"""Text files to examples.

`.txt` is a text a line. `.tsv` and `.csv` have a header that names the columns or, without one, are
`label<TAB>text`. `.jsonl` and `.parquet` name their columns. All text is UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import InputError, MissingComponent


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read.

    Attributes:
        separator: what stands between the labels of a text that may have several, or none; empty where each
            text has one. JSON and Parquet may also give them as a list.
    """

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"
    separator: str = ""


@dataclass(frozen=True)
class Examples:
    """The rows of a data file, in its order.

    Attributes:
        texts: one text a row.
        pairs: the second text of each row, or None where the file has none.
        labels: one label a row as it stands in the file, or None where the file has none.
        source: the file, for messages.
        lines: the line of the file on which each row ends, counted from 1; a Parquet file's row number.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[str] | None
    source: Path
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.texts)


def read_examples(path: Path, columns: Columns | None = None, need_labels: bool = False) -> Examples:
    """Reads a data file.

    Errors: InputError for a missing or empty file, an unknown extension, bytes that are not UTF-8, a
    line without a tab, a missing column, an empty text, or no labels where `need_labels`.
    """
    path, columns = Path(path), columns or Columns()
    rows = _READERS[kind_of(path, _READERS)](path, columns)
    if not rows:
        raise InputError("the data file has no rows", path, "give it at least one text")
    examples = _gather(rows, columns, path)
    if need_labels and examples.labels is None:
        raise InputError(
            f"no labels: the file has no column '{columns.label}'",
            path,
            "add it, or name it with --label-column",
        )
    return examples


def kind_of(path: Path, known: Collection[str]) -> str:
    """A data file's extension, such as `.tsv`.

    Errors: InputError where there is no such file, or where it is none of the kinds that are `known`.
    """
    if not path.exists():
        raise InputError("no such data file", path, "check the path")
    if path.is_dir():
        raise InputError("a folder where a data file is expected", path, "name the file in it")
    kind = path.suffix.lower()
    if kind not in known:
        raise InputError(f"unknown kind of data file '{kind}'", path, f"use one of {', '.join(known)}")
    return kind


Row = tuple[int, Mapping[str, str]]


def _gather(rows: Sequence[Row], columns: Columns, path: Path) -> Examples:
    present = {name for _, row in rows for name in row}
    if columns.text not in present:
        raise InputError(
            f"the file has no column '{columns.text}'", path, "add it, or name it with --text-column"
        )
    has_pair, has_label = columns.text_pair in present, columns.label in present
    for line, row in rows:
        wanted = [
            columns.text,
            *([columns.text_pair] if has_pair else []),
            *([columns.label] if has_label and not columns.separator else []),
        ]
        for name in wanted:
            if name not in row or row[name].strip() == "":
                raise InputError(f"no {name}", f"{path}, line {line}", "fill it in or remove the line")
            if not _is_unicode(row[name]):
                raise InputError(
                    f"half a surrogate pair in {name}", f"{path}, line {line}", "write the whole character"
                )
    return Examples(
        texts=[row[columns.text] for _, row in rows],
        pairs=[row[columns.text_pair] for _, row in rows] if has_pair else None,
        labels=[row.get(columns.label, "") for _, row in rows] if has_label else None,
        source=path,
        lines=[line for line, _ in rows],
    )


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON's escapes can spell and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark.

    Errors: InputError for bytes that are not UTF-8; the line is named.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"not UTF-8: byte 0x{data[error.start]:02x}", f"{path}, line {line}", "save the file as UTF-8"
        ) from error


def _read_lines(path: Path, columns: Columns) -> list[Row]:
    lines = read_text(path).split("\n")
    return [
        (number, {columns.text: line.rstrip("\r")}) for number, line in enumerate(lines, 1) if line.strip()
    ]


def _read_tsv(path: Path, columns: Columns) -> list[Row]:
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(read_text(path).split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        return []
    if _is_header(lines[0][1].split("\t"), columns):
        return _by_header([(number, line.split("\t")) for number, line in lines], columns, path)
    rows: list[Row] = []
    for number, line in lines:
        if "\t" not in line:
            raise InputError(
                "a line without a tab",
                f"{path}, line {number}",
                "write label<TAB>text, or name the columns in a header",
            )
        label, text = line.split("\t", 1)
        rows.append((number, {columns.label: label, columns.text: text}))
    return rows


def _is_header(fields: Sequence[str], columns: Columns) -> bool:
    """Whether the first row names the columns; it must where the user says how the text's is called."""
    names = {name.casefold() for name in (columns.text, columns.text_pair, columns.label)}
    return columns.text != Columns.text or any(field.strip().casefold() in names for field in fields)


def _by_header(lines: Sequence[tuple[int, Sequence[str]]], columns: Columns, path: Path) -> list[Row]:
    header = lines[0][1]
    if columns.text not in header:
        alike = next((name for name in header if name.strip().casefold() == columns.text.casefold()), None)
        todo = f"name it with --text-column '{alike}'" if alike else "add it, or name it with --text-column"
        raise InputError(f"the file has no column '{columns.text}'", path, todo)
    for name in (columns.text, columns.text_pair, columns.label):
        if header.count(name) > 1:
            raise InputError(f"the header names '{name}' twice", path, "rename or remove one of them")
    return [(number, _fields(row, header, path, number)) for number, row in lines[1:]]


def _fields(values: Sequence[str], header: Sequence[str], path: Path, line: int) -> dict[str, str]:
    if len(values) != len(header):
        raise InputError(
            f"{len(values)} fields where the header names {len(header)}",
            f"{path}, line {line}",
            "fix the line",
        )
    return dict(zip(header, values, strict=True))


def _read_csv(path: Path, columns: Columns) -> list[Row]:
    text = read_text(path)
    delimiter = "," if "\t" not in text.split("\n", 1)[0] else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise InputError(f"broken CSV: {error}", f"{path}, line {reader.line_num}", "fix the line") from error
    if not lines:
        return []
    if _is_header(lines[0][1], columns):
        return _by_header(lines, columns, path)
    for number, row in lines:
        if len(row) != 2 or delimiter == ",":
            raise InputError(
                f"{len(row)} fields and no header that names 'text'",
                f"{path}, line {number}",
                "name the columns in a header, or the text's with --text-column",
            )
    return [(number, {columns.label: row[0], columns.text: row[1]}) for number, row in lines]


def _read_jsonl(path: Path, columns: Columns) -> list[Row]:
    return [
        (number, _strings(value, columns, f"{path}, line {number}")) for number, value in json_lines(path)
    ]


def json_lines(path: Path) -> list[tuple[int, dict[str, object]]]:
    """The objects of a JSONL file, each with its line's number.

    Errors: InputError for a line that is no JSON object and for bytes that are not UTF-8.
    """
    objects: list[tuple[int, dict[str, object]]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"not JSON: {error}", f"{path}, line {number}", "write one JSON object a line"
            ) from error
        if not isinstance(value, dict):
            raise InputError("not a JSON object", f"{path}, line {number}", "write one JSON object a line")
        objects.append((number, value))
    return objects


def _strings(value: Mapping[str, object], columns: Columns, where: str) -> dict[str, str]:
    """The columns that are read, numbers and truth values as text; absent where they are null."""
    row: dict[str, str] = {}
    for name in (columns.text, columns.text_pair, columns.label):
        item = value.get(name)
        if name == columns.label and columns.separator and isinstance(item, list):
            item = _joined(item, columns.separator, where)
        if isinstance(item, (list, dict, bytes)):
            raise InputError(f"{name} is no text", where, "write one text a row")
        if item is not None:
            row[name] = str(item)
    return row


def _joined(labels: Sequence[object], separator: str, where: str) -> str:
    """A list of labels as a file without lists would spell it."""
    names = [str(label) for label in labels]
    for name in names:
        if separator in name:
            raise InputError(
                f"the label '{name}' holds the separator '{separator}'",
                where,
                "choose another with --label-separator",
            )
    return separator.join(names)


def _read_parquet(path: Path, columns: Columns) -> list[Row]:
    wanted = (columns.text, columns.text_pair, columns.label)
    return [
        (number, _strings(record, columns, f"{path}, row {number}"))
        for number, record in parquet_rows(path, wanted)
    ]


def parquet_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, object]]]:
    """The rows of a Parquet file, counted from 1, with those of `columns` that it has.

    Errors: InputError for a file that is not Parquet; MissingComponent where pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingComponent(
            "pyarrow is not installed", path, "pip install pyarrow, or give the data as .jsonl"
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        raise InputError("not a Parquet file", path, f"replace it ({error})") from error
    names = [name for name in columns if name in table.column_names]
    return list(enumerate(table.select(names).to_pylist(), 1))


_READERS = {
    ".txt": _read_lines,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
