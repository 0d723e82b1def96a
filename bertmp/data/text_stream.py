"""Lines of text files in bounded memory, whatever their length."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bertmp.core.errors import InputError

LINE = 1 << 16
"""Characters of a line of a `.txt` corpus: a longer line is split into several sentences."""
ROW = 1 << 24
"""Characters of a line of the other corpora: a longer line is refused."""


@contextmanager
def open_text(path: Path, newline: str = "\n") -> Iterator[TextIO]:
    """Opens a UTF-8 file with untranslated line ends; `newline` as for `open`.

    Raises:
        InputError: bytes that are not UTF-8; its line is named.
    """
    with path.open(encoding="utf-8-sig", newline=newline) as stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


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
                byte = error.object[error.start]
                return InputError(
                    f"not UTF-8: byte 0x{byte:02x}", f"{path}, line {line}", "save the file as UTF-8"
                )
            line += block.count(b"\n")
    return InputError("not UTF-8: the last character is cut off", path, "save the file as UTF-8")


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
    number = 0
    while line := stream.readline(-1 if longest is None else longest + 1):
        number += 1
        if longest is not None and len(line) > longest:
            raise InputError(
                f"a line of more than {longest:,} characters", f"{path}, line {number}", "split its text"
            )
        yield number, line
