"""Reading sentences with a label for each word: CoNLL files, and lists of words and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.readers import Sentence, conll_notice, is_unicode, kind_of, sentences_of_lines
from bertmp.data.streams import Record, records

_KINDS = (".txt", ".tsv", ".conll", ".jsonl", ".parquet")


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


def read_sentences(
    path: Path,
    words: str = "tokens",
    labels: str = "labels",
    encoding: str | None = None,
    progress: ProgressCallback = null_progress,
) -> Sentences:
    """Reads a data file.

    Args:
        path: the file.
        words, labels: names of the columns, for formats with column names.
        encoding: the file's; None for UTF-8 or the one that a byte order mark names.
        progress: told that the file was read as CoNLL, where it was.

    Raises:
        InputError: a missing or empty file, an unknown extension, bytes that are not UTF-8, a line without a
            label, or lists that differ in length or contain something other than words.
    """
    path = Path(path)
    kind = kind_of(path, _KINDS)
    lists = kind in (".jsonl", ".parquet")
    rows = list(
        _sentences_of_lists(path, words, labels, encoding) if lists else sentences_of_lines(path, encoding)
    )
    if not rows:
        raise InputError("the data file has no sentences", path, "give it at least one")
    if not lists:
        progress(conll_notice(path, len(rows)))
    return Sentences([row[0] for row in rows], [row[1] for row in rows], path)


def _sentences_of_lists(path: Path, words: str, labels: str, encoding: str | None) -> Iterator[Sentence]:
    for _, record, where, _ in records(path, (words, labels), encoding=encoding):
        row = (_words(record, words, where), _words(record, labels, where))
        if len(row[0]) != len(row[1]):
            what = f"{len(row[0])} {words} and {len(row[1])} {labels}"
            raise InputError(what, where, "give each word one label")
        if row[0]:
            yield row


def _words(record: Record, name: str, where: str) -> list[str]:
    """A list of words or labels, numbers as text."""
    value = record.get(name)
    if value is None:
        todo = "add them, or name the columns with --text-column and --label-column"
        raise InputError(f"no {name}", where, todo)
    if not isinstance(value, list):
        raise InputError(f"{name} is not a list", where, "give a list of words and a list of their labels")
    for item in value:
        if not isinstance(item, (str, int)) or str(item) == "" or not is_unicode(str(item)):
            raise InputError(f"{item!r} among the {name}", where, "give a list of words or of labels")
    return [str(item) for item in value]
