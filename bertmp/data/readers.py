"""Reads the examples of fine-tuning from data files.

Of texts, `.txt` has one per line. `.tsv` and `.csv` have a header with column names or, without one, lines of
`label<TAB>text`. `.jsonl` and `.parquet` have named columns. Text is UTF-8 unless a byte order mark or the
user names another encoding. A CoNLL file's sentences are its texts, their words joined by spaces.

Of sentences with one label per word, `.txt`, `.tsv` and `.conll` have one word per line and blank lines
between sentences (Tjong Kim Sang & De Meulder 2003). The first field is the word, the last its label; fields
are separated by tabs or, in lines without tabs, by spaces. `.jsonl` and `.parquet` have one sentence per row:
a list of words and one of labels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.progress import Notice, ProgressCallback, null_progress
from bertmp.data.streams import delimited_records, named_fields, numbered_lines, open_text, records


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read.

    Attributes:
        separator: separates the labels of a multi-label example; empty for single-label data. In JSON and
            Parquet, the labels may also be a list.
        encoding: the file's; None for UTF-8 or the one that a byte order mark names.
        delimiter: separates the fields of a .csv or .tsv file; None for the one found in its first line.
        labelled: whether labels are read; otherwise the label's name only tells a header from data.
    """

    text: str = "text"
    text_pair: str = "text_pair"
    label: str = "label"
    separator: str = ""
    encoding: str | None = None
    delimiter: str | None = None
    labelled: bool = True


@dataclass(frozen=True)
class Examples:
    """The rows of a data file, in its order.

    Attributes:
        texts: one text per row.
        pairs: the second text of each row; None if the file has none.
        labels: one label per row as in the file; None if the file has none.
        source: the file, for messages.
        lines: the line of the file on which each row ends, counted from 1; a Parquet file's row number, a
            CoNLL file's number of the sentence.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[str] | None
    source: Path
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.texts)


def read_examples(
    path: Path,
    columns: Columns | None = None,
    need_labels: bool = False,
    progress: ProgressCallback = null_progress,
) -> Examples:
    """Reads a data file.

    Args:
        progress: told that the file was read as CoNLL, where it was.

    Raises:
        InputError: a missing or empty file, an unknown extension, bytes that are not UTF-8, a line without
            a tab, a missing column, an empty text, or no labels although `need_labels`.
    """
    path, columns = Path(path), columns or Columns()
    kind = kind_of_texts(path, columns)
    rows = list(rows_of(path, columns, kind))
    if not rows:
        raise InputError("the data file has no rows", path, "give it at least one text")
    if kind == ".conll":
        progress(conll_notice(path, len(rows)))
    examples = _gather(rows, columns, path)
    if need_labels and examples.labels is None:
        what = f"no labels: the file has no column '{columns.label}'"
        raise InputError(what, path, "add it, or name it with --label-column")
    return examples


def kind_of_texts(path: Path, columns: Columns) -> str:
    """The extension that says how a file of texts is read; `.conll` for one that looks like CoNLL.

    Raises:
        InputError: as in `kind_of`.
    """
    kind = kind_of(path, _READERS)
    return ".conll" if kind in _LINE_KINDS and is_conll(path, columns) else kind


def rows_of(path: Path, columns: Columns, kind: str) -> Iterator[Row]:
    """The rows of a file of texts, one after the other, in bounded memory: number, and field by column.

    Args:
        kind: see `kind_of_texts`.

    Raises:
        InputError: as in `read_examples`, but for the checks of the fields.
    """
    return _READERS[kind](path, columns)


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
        what = f"the file has no column '{columns.text}'"
        raise InputError(what, path, "add it, or name it with --text-column")
    has_pair, has_label = columns.text_pair in present, columns.label in present
    wanted = [columns.text, *[columns.text_pair] * has_pair]
    if has_label and not columns.separator:
        wanted.append(columns.label)
    for line, row in rows:
        for name in wanted:
            require_field(row, name, f"{path}, line {line}")
    labels = [row.get(columns.label, "") for _, row in rows] if has_label else None
    return Examples(
        texts=[row[columns.text] for _, row in rows],
        pairs=[row[columns.text_pair] for _, row in rows] if has_pair else None,
        labels=labels if columns.separator or labels is None else _one_spelling(labels),
        source=path,
        lines=[line for line, _ in rows],
    )


FILL_IN = "fill it in or remove the line"


def require_field(row: Mapping[str, str], name: str, where: str) -> str:
    """A field of a row.

    Raises:
        InputError: it is missing, blank, or holds half a surrogate pair.
    """
    if name not in row or row[name].strip() == "":
        raise InputError(f"no {name}", where, FILL_IN)
    if not is_unicode(row[name]):
        raise InputError(f"half a surrogate pair in {name}", where, "write the whole character")
    return row[name]


def _one_spelling(labels: Sequence[str]) -> Sequence[str]:
    """Whole numbers as integers, since a column that once had a gap holds 1.0 for 1; True and False alike."""
    if all(label.casefold() in ("true", "false") for label in labels):
        return [label.capitalize() for label in labels]
    if all(_WHOLE.fullmatch(label) for label in labels):
        return [label.partition(".")[0] for label in labels]
    return labels


_WHOLE = re.compile(r"[-+]?[0-9]+(\.0*)?")


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which a JSON escape can spell and no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_lines(path: Path, columns: Columns) -> Iterator[Row]:
    with open_text(path, encoding=columns.encoding) as stream:
        for number, line in numbered_lines(stream, path):
            if line.strip():
                yield number, {columns.text: line.rstrip("\r\n")}


def _read_delimited(path: Path, columns: Columns) -> Iterator[Row]:
    delimiter = delimiter_of(path, columns)
    rows = delimited_records(path, delimiter, encoding=columns.encoding)
    lines = ((number, fields) for number, fields, _ in rows)
    first = next(lines, None)
    if first is None:
        return
    if _is_header(first[1], columns):
        yield from _by_header(first[1], lines, columns, path)
        return
    for number, fields in chain([first], lines):
        where, todo = f"{path}, line {number}", "write label<TAB>text, or name the columns in a header"
        if delimiter is None and len(fields) < 2:
            raise InputError("a line without a tab", where, todo)
        if delimiter == "," or (delimiter and len(fields) != 2):
            todo = "name the columns in a header, or the text's with --text-column"
            if len(fields) == 1:
                todo = f"{todo}, or what separates the fields with --delimiter"
            what = f"{len(fields)} field{'s' if len(fields) != 1 else ''} and no header that names 'text'"
            raise InputError(what, where, todo)
        label, *text = fields
        yield number, {columns.label: label.strip(), columns.text: "\t".join(text)}


def delimiter_of(path: Path, columns: Columns) -> str | None:
    """What separates the fields; None for the tabs of a TSV file, whose rows are lines.

    In a CSV file, semicolons separate where the header names a column only when split by them.
    """
    kind = path.suffix.lower()
    if columns.delimiter is not None:
        return None if kind == ".tsv" and columns.delimiter == "\t" else columns.delimiter
    if kind == ".tsv":
        return None
    with open_text(path, encoding=columns.encoding) as stream:
        header = stream.readline().strip()
    if "\t" in header:
        return "\t"
    names = {name.casefold() for name in (columns.text, columns.text_pair, columns.label)}
    named = [mark for mark in ",;" if names & {field.strip(' "').casefold() for field in header.split(mark)}]
    return ";" if named == [";"] else ","


def _is_header(fields: Sequence[str], columns: Columns) -> bool:
    """Whether the first row is a header; it must be if the user names the text column."""
    names = {name.casefold() for name in (columns.text, columns.text_pair, columns.label)}
    return columns.text != Columns.text or any(field.strip().casefold() in names for field in fields)


def _by_header(
    header: Sequence[str], lines: Iterable[tuple[int, Sequence[str]]], columns: Columns, path: Path
) -> Iterator[Row]:
    if columns.text not in header:
        alike = next((name for name in header if name.strip().casefold() == columns.text.casefold()), None)
        todo = f"name it with --text-column '{alike}'" if alike else "add it, or name it with --text-column"
        raise InputError(f"the file has no column '{columns.text}'", path, todo)
    for name in (columns.text, columns.text_pair, columns.label):
        if header.count(name) > 1:
            raise InputError(f"the header names '{name}' twice", path, "rename or remove one of them")
    for number, fields in lines:
        row = named_fields(header, fields, f"{path}, line {number}")
        yield number, {name: row[name].strip() if name == columns.label else row[name] for name in row}


def _read_records(path: Path, columns: Columns) -> Iterator[Row]:
    wanted = (columns.text, columns.text_pair, columns.label)
    for number, record, where, _ in records(path, wanted, encoding=columns.encoding):
        yield number, _strings(record, columns, where)


def _strings(value: Mapping[str, object], columns: Columns, where: str) -> dict[str, str]:
    """The values of the columns that are read, as strings; without those that are null."""
    row: dict[str, str] = {}
    for name in (columns.text, columns.text_pair, *[columns.label] * columns.labelled):
        item = value.get(name)
        if name == columns.label and columns.separator and isinstance(item, list):
            names = [str(label) for label in item]
            for label in names:
                if columns.separator in label:
                    what = f"the label '{label}' holds the separator '{columns.separator}'"
                    raise InputError(what, where, "choose another with --label-separator")
            item = columns.separator.join(names)
        named = name == columns.text != Columns.text
        if named and isinstance(item, list) and all(isinstance(word, str) for word in item):
            item = " ".join(item)  # the words of a sentence, in a column that the user chose
        if isinstance(item, float) and item != item:
            raise InputError(f"{name} is not a number (NaN)", where, "fill it in or remove the row")
        if isinstance(item, (list, dict, bytes)):
            raise InputError(f"{name} is not text", where, "write one text per row")
        if item is not None:
            row[name] = str(item)
    return row


def conll_notice(path: Path, sentences: int) -> Notice:
    """What to tell a user whose file was read as CoNLL."""
    return Notice(f"{path}: read as CoNLL, {sentences:,} {'sentence' if sentences == 1 else 'sentences'}")


def _read_conll(path: Path, columns: Columns) -> Iterator[Row]:
    for number, (words, _) in enumerate(sentences_of_lines(path, columns.encoding), 1):
        yield number, {columns.text: " ".join(words)}


_READERS = {".txt": _read_lines, ".tsv": _read_delimited, ".csv": _read_delimited, ".conll": _read_conll}
_READERS |= dict.fromkeys((".jsonl", ".parquet"), _read_records)
_LINE_KINDS = (".txt", ".tsv")
"""Kinds that a CoNLL file may have, too."""

_TAG = re.compile(r"O|[BIESLU]-\S+")


def is_conll(path: Path, columns: Columns) -> bool:
    """Whether a file holds a word and its tag, such as `B-PER` or `O`, per line.

    Its first hundred lines have the same number of fields and end in a tag, `O` among them: texts do not.
    """
    with open_text(path, encoding=columns.encoding) as stream:
        lines = islice((_fields(line) for _, line in numbered_lines(stream, path)), 100)
        words = [fields for fields in lines if fields and fields[0] != _DOCUMENT]
    tags = {fields[-1] for fields in words}
    same = len({len(fields) for fields in words}) == 1 and len(words) > 1 < len(words[0])
    return same and "O" in tags and all(_TAG.fullmatch(tag) for tag in tags)


_DOCUMENT = "-DOCSTART-"


Sentence = tuple[list[str], list[str]]


def sentences_of_lines(path: Path, encoding: str | None = None) -> Iterator[Sentence]:
    """The sentences of a CoNLL file, its first column as words and its last as their labels.

    Raises:
        InputError: a line without a label, or with a label of several words.
    """
    words: list[str] = []
    labels: list[str] = []
    with open_text(path, encoding=encoding) as stream:
        for number, line in numbered_lines(stream, path):
            fields = _fields(line)
            if fields and fields[0] != _DOCUMENT:
                where, todo = f"{path}, line {number}", "write word<TAB>label"
                if len(fields) < 2 or not fields[0] or not fields[-1]:
                    todo = f"{todo}, and a blank line between sentences"
                    raise InputError("a word without a label", where, todo)
                if " " in fields[-1]:
                    raise InputError(f"a label of several words: '{fields[-1][:30]}'", where, todo)
                words.append(fields[0])
                labels.append(fields[-1])
            elif words:
                yield words, labels
                words, labels = [], []
    if words:
        yield words, labels


def _fields(line: str) -> list[str]:
    """The fields of a line; none if it is blank."""
    if not line.strip():
        return []
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
