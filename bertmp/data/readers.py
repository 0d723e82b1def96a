"""Reads examples from data files.

`.txt` has one text per line. `.tsv` and `.csv` have a header with column names or, without one, lines of
`label<TAB>text`. `.jsonl` and `.parquet` have named columns. All text is UTF-8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.data.record_stream import delimited_records, json_records, named_fields, parquet_records
from bertmp.data.text_stream import numbered_lines, open_text


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read.

    Attributes:
        separator: separates the labels of a multi-label example; empty for single-label data. In JSON and
            Parquet, the labels may also be a list.
    """

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"
    separator: str = ""


@dataclass(frozen=True)
class Examples:
    """The rows of a data file, in its order.

    Attributes:
        texts: one text per row.
        pairs: the second text of each row; None if the file has none.
        labels: one label per row as in the file; None if the file has none.
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

    Raises:
        InputError: a missing or empty file, an unknown extension, bytes that are not UTF-8, a line without
            a tab, a missing column, an empty text, or no labels although `need_labels`.
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

    Raises:
        InputError: there is no such file, or its extension is not among `known`.
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
            if not is_unicode(row[name]):
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


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which a JSON escape can spell and no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_lines(path: Path, columns: Columns) -> list[Row]:
    with open_text(path) as stream:
        return [
            (number, {columns.text: line.rstrip("\r\n")})
            for number, line in numbered_lines(stream, path)
            if line.strip()
        ]


def _read_tsv(path: Path, columns: Columns) -> list[Row]:
    lines = [(number, fields) for number, fields, _ in delimited_records(path)]
    if not lines:
        return []
    if _is_header(lines[0][1], columns):
        return _by_header(lines, columns, path)
    rows: list[Row] = []
    for number, (label, *text) in lines:
        if not text:
            raise InputError(
                "a line without a tab",
                f"{path}, line {number}",
                "write label<TAB>text, or name the columns in a header",
            )
        rows.append((number, {columns.label: label, columns.text: "\t".join(text)}))
    return rows


def _is_header(fields: Sequence[str], columns: Columns) -> bool:
    """Whether the first row is a header; it must be if the user names the text column."""
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
    return [(number, named_fields(header, row, f"{path}, line {number}")) for number, row in lines[1:]]


def _read_csv(path: Path, columns: Columns) -> list[Row]:
    with open_text(path) as stream:
        delimiter = "\t" if "\t" in stream.readline() else ","
    lines = [(number, row) for number, row, _ in delimited_records(path, delimiter)]
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
        (line, _strings(record, columns, f"{path}, line {line}")) for line, record, _ in json_records(path)
    ]


def _strings(value: Mapping[str, object], columns: Columns, where: str) -> dict[str, str]:
    """The values of the columns that are read, as strings; without those that are null."""
    row: dict[str, str] = {}
    for name in (columns.text, columns.text_pair, columns.label):
        item = value.get(name)
        if name == columns.label and columns.separator and isinstance(item, list):
            item = _joined(item, columns.separator, where)
        if isinstance(item, (list, dict, bytes)):
            raise InputError(f"{name} is not text", where, "write one text per row")
        if item is not None:
            row[name] = str(item)
    return row


def _joined(labels: Sequence[object], separator: str, where: str) -> str:
    """A list of labels, joined as in files without lists."""
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
        (row, _strings(record, columns, f"{path}, row {row}"))
        for row, record in parquet_records(path, wanted)
    ]


_READERS = {
    ".txt": _read_lines,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
