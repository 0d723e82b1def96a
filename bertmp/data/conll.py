"""Reads sentences with one label per word.

`.txt`, `.tsv` and `.conll` have one word per line and blank lines between sentences (Tjong Kim Sang & De
Meulder 2003). The first field is the word, the last its label; fields are separated by tabs or, in lines
without tabs, by spaces. `.jsonl` and `.parquet` have one sentence per row: a list of words and one of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.data.readers import is_unicode, kind_of
from bertmp.data.record_stream import Record, json_records, parquet_records
from bertmp.data.text_stream import numbered_lines, open_text

_KINDS = (".txt", ".tsv", ".conll", ".jsonl", ".parquet")
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Sentences:
    """The sentences of a data file, in its order.

    Attributes:
        words: the words of each sentence, at least one.
        labels: one label per word.
        source: the file, for messages.
    """

    words: Sequence[Sequence[str]]
    labels: Sequence[Sequence[str]]
    source: Path

    def __len__(self) -> int:
        return len(self.words)


def read_sentences(path: Path, words: str = "tokens", labels: str = "labels") -> Sentences:
    """Reads a data file.

    Args:
        path: the file.
        words, labels: names of the columns, for formats with column names.

    Raises:
        InputError: a missing or empty file, an unknown extension, bytes that are not UTF-8, a line without a
            label, or lists that differ in length or contain something other than words.
    """
    path = Path(path)
    kind = kind_of(path, _KINDS)
    if kind in (".jsonl", ".parquet"):
        rows = list(_rows_of_lists(path, kind, words, labels))
    else:
        rows = list(_rows_of_lines(path))
    if not rows:
        raise InputError("the data file has no sentences", path, "give it at least one")
    return Sentences([row[0] for row in rows], [row[1] for row in rows], path)


Row = tuple[list[str], list[str]]


def _rows_of_lines(path: Path) -> Iterator[Row]:
    words: list[str] = []
    labels: list[str] = []
    for number, line in _lines(path):
        fields = _fields(line)
        if fields and fields[0] != _DOCUMENT:
            if len(fields) < 2 or not fields[0] or not fields[-1]:
                raise InputError(
                    "a word without a label",
                    f"{path}, line {number}",
                    "write word<TAB>label, and a blank line between sentences",
                )
            if " " in fields[-1]:
                raise InputError(
                    f"a label of several words: '{fields[-1][:30]}'",
                    f"{path}, line {number}",
                    "write word<TAB>label",
                )
            words.append(fields[0])
            labels.append(fields[-1])
        elif words:
            yield words, labels
            words, labels = [], []
    if words:
        yield words, labels


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_text(path) as stream:
        yield from numbered_lines(stream, path)


def _fields(line: str) -> list[str]:
    """The fields of a line; none if it is blank."""
    if not line.strip():
        return []
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _rows_of_lists(path: Path, kind: str, words: str, labels: str) -> Iterator[Row]:
    for where, record in _located_records(path, kind, (words, labels)):
        row = (_strings(record, words, where), _strings(record, labels, where))
        if len(row[0]) != len(row[1]):
            raise InputError(
                f"{len(row[0])} {words} and {len(row[1])} {labels}", where, "give each word one label"
            )
        if row[0]:
            yield row


def _located_records(path: Path, kind: str, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """The records of a file, each with its place for messages."""
    if kind == ".jsonl":
        for line, record, _ in json_records(path):
            yield f"{path}, line {line}", record
    else:
        for row, record in parquet_records(path, columns):
            yield f"{path}, row {row}", record


def _strings(record: Record, name: str, where: str) -> list[str]:
    """A list of words or labels, numbers as text."""
    value = record.get(name)
    if value is None:
        raise InputError(
            f"no {name}", where, "add them, or name the columns with --text-column and --label-column"
        )
    if not isinstance(value, list):
        raise InputError(f"{name} is not a list", where, "give a list of words and a list of their labels")
    for item in value:
        if not isinstance(item, (str, int)) or str(item) == "" or not is_unicode(str(item)):
            raise InputError(f"{item!r} among the {name}", where, "give a list of words or of labels")
    return [str(item) for item in value]
