"""Files of sentences with a label for each word.

`.txt`, `.tsv` and `.conll` have a word a line and a blank line between sentences (Tjong Kim Sang & De Meulder
2003): the first field is the word, the last its label; fields are parted by tabs or, in lines without one, by
spaces. `.jsonl` and `.parquet` have a sentence a row, with a list of words and a list of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.data.readers import json_lines, kind_of, parquet_rows, read_text

_KINDS = (".txt", ".tsv", ".conll", ".jsonl", ".parquet")
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Sentences:
    """The sentences of a data file, in its order.

    Attributes:
        words: of each sentence, at least one.
        labels: one a word.
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
        words, labels: the columns' names, where the file names its columns.

    Errors: InputError for a missing or empty file, an unknown extension, bytes that are not UTF-8, a line
    without a label, a row whose lists differ in length or hold something else than words.
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
    for number, line in enumerate(read_text(path).split("\n"), 1):
        fields = _fields(line.rstrip("\r"))
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


def _fields(line: str) -> list[str]:
    """The fields of a line; none where it is blank."""
    if not line.strip():
        return []
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _rows_of_lists(path: Path, kind: str, words: str, labels: str) -> Iterator[Row]:
    records = json_lines(path) if kind == ".jsonl" else parquet_rows(path, (words, labels))
    unit = "line" if kind == ".jsonl" else "row"
    for number, record in records:
        where = f"{path}, {unit} {number}"
        row = (_strings(record, words, where), _strings(record, labels, where))
        if len(row[0]) != len(row[1]):
            raise InputError(
                f"{len(row[0])} {words} and {len(row[1])} {labels}", where, "give each word one label"
            )
        if row[0]:
            yield row


def _strings(record: dict[str, object], name: str, where: str) -> list[str]:
    """A list of words or labels, numbers as text."""
    value = record.get(name)
    if value is None:
        raise InputError(
            f"no {name}", where, "add them, or name the columns with --text-column and --label-column"
        )
    if not isinstance(value, list):
        raise InputError(f"{name} is no list", where, "give a list of words and a list of their labels")
    for item in value:
        if not isinstance(item, (str, int)) or str(item) == "" or not _is_unicode(str(item)):
            raise InputError(f"{item!r} among the {name}", where, "give a list of words or of labels")
    return [str(item) for item in value]


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which no tokenizer takes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
