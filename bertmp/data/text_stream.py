"""The texts of a data file as a stream, in bounded memory; the file is checked from end to end first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from bertmp.core.errors import InputError
from bertmp.core.progress import Notice, ProgressCallback, null_progress
from bertmp.data.readers import FILL_IN, Columns, kind_of_texts, require_field, rows_of


@dataclass(frozen=True)
class TextRow:
    """One text, or pair of texts.

    Attributes:
        line: as in `Examples.lines`.
        text: the text.
        pair: the second text; None if the file has none.
    """

    line: int
    text: str
    pair: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, and the second one if there is one."""
        return (self.text,) if self.pair is None else (self.text, self.pair)


@dataclass(frozen=True)
class TextFile:
    """A data file of texts that has been read through once and found good.

    Attributes:
        path: the file.
        columns: how it is read; labels are not.
        kind: the extension that says how.
        rows: how many rows it has.
        pairs: whether they are pairs of texts.
    """

    path: Path
    columns: Columns
    kind: str
    rows: int
    pairs: bool

    @classmethod
    def check(
        cls,
        path: Path,
        columns: Columns,
        check_row: Callable[[TextRow, str], None] = lambda row, where: None,
        progress: ProgressCallback = null_progress,
    ) -> TextFile:
        """Reads a file through, in bounded memory.

        Args:
            check_row: called with each row and its place; may raise InputError.
            progress: told that the file was read as CoNLL, where it was.

        Raises:
            InputError: as in `read_examples`; or not a regular file, which alone can be read twice.
        """
        path, columns = Path(path), replace(columns, labelled=False)
        kind = kind_of_texts(path, columns)
        if not path.is_file():
            raise InputError("not a regular file", path, "write the texts to one: they are read twice")
        rows, seen, lacking = 0, set[str](), dict[str, int]()
        for line, row in rows_of(path, columns, kind):
            where = f"{path}, line {line}"
            for name in (columns.text, columns.text_pair):  # all rows have it, or none
                seen.update([name] * (name in row))
                if name not in row:
                    lacking.setdefault(name, line)
                if name in seen and name in lacking:
                    raise InputError(f"no {name}", f"{path}, line {lacking[name]}", FILL_IN)
            rows += 1
            if columns.text in row:
                check_row(_text_row(line, row, columns, where), where)
        if not rows:
            raise InputError("the data file has no rows", path, "give it at least one text")
        if columns.text not in seen:
            what = f"the file has no column '{columns.text}'"
            raise InputError(what, path, "add it, or name it with --text-column")
        if kind == ".conll":
            progress(Notice(f"{path}: read as CoNLL, {rows:,} {'sentence' if rows == 1 else 'sentences'}"))
        return cls(path, columns, kind, rows, columns.text_pair in seen)

    def __iter__(self) -> Iterator[TextRow]:
        """The rows, in the file's order.

        Raises:
            InputError: the file has changed since it was checked.
        """
        count = 0
        for line, row in rows_of(self.path, self.columns, self.kind):
            count += 1
            yield _text_row(line, row, self.columns, f"{self.path}, line {line}")
        if count != self.rows:
            what = f"the file had {self.rows} rows and now has {count}"
            raise InputError(what, self.path, "leave it as it is while it is read")


def _text_row(line: int, row: Mapping[str, str], columns: Columns, where: str) -> TextRow:
    paired = columns.text_pair in row
    pair = require_field(row, columns.text_pair, where) if paired else None
    return TextRow(line, require_field(row, columns.text, where), pair)


RowT = TypeVar("RowT", bound=TextRow)


def chunks(rows: Iterable[RowT], most: int, characters: int) -> Iterator[list[RowT]]:
    """The rows in lists of at most `most`, and of at most `characters` unless a single row has more."""
    chunk: list[RowT] = []
    size = 0
    for row in rows:
        length = sum(map(len, row.texts))
        if chunk and (len(chunk) == most or size + length > characters):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += length
    if chunk:
        yield chunk
