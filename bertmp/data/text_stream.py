"""Lines of text files, however long they are, in bounded memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bertmp.core.errors import InputError

LINE = 1 << 16
"""Characters of a line: a longer one of a `.txt` file is taken as several sentences, so that no line has to
fit into memory."""
ROW = 1 << 24
"""Characters of a row: a longer line of the other formats is refused, since its parts say nothing."""


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file as text, line ends as they are."""
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _not_utf8(path: Path) -> InputError:
    """Says where the first byte is that no UTF-8 text has; the stream's own error knows no line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as stream:
        while block := stream.read(1 << 16):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                # A character begun in the block before stands at the front of what the error shows.
                line += error.object[: error.start].count(b"\n")
                byte = error.object[error.start]
                return InputError(
                    f"not UTF-8: byte 0x{byte:02x}", f"{path}, line {line}", "save the file as UTF-8"
                )
            line += block.count(b"\n")
    return InputError("not UTF-8: the last character is cut off", path, "save the file as UTF-8")


def parts_of_lines(stream: TextIO) -> Iterator[str]:
    """Lines without their ends; longer ones than `LINE` in parts, cut between words where there are any."""
    carried = ""
    while read := stream.readline(LINE):
        text, carried = carried + read, ""
        if not text.endswith("\n") and len(read) == LINE:
            head, blank, tail = text.rpartition(" ")
            text, carried = (head, tail) if blank else (text, "")
        yield text.rstrip("\r\n")
    if carried:
        yield carried


def whole_lines(stream: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends, and their numbers from 1.

    Errors: InputError for a line of more than `ROW` characters.
    """
    number = 0
    while line := stream.readline(ROW + 1):
        number += 1
        if len(line) > ROW:
            raise InputError(
                f"a line of more than {ROW:,} characters", f"{path}, line {number}", "split its text"
            )
        yield number, line
