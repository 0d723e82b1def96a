"""Texts as a stream: the same as read at once, checked first, in parts of bounded size."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertmp.core.errors import InputError
from bertmp.data.readers import Columns, read_examples
from bertmp.data.text_stream import TextFile, TextRow, chunks

FILES = {
    "lines.txt": "one\r\n\ntwo\tparts\n",
    "plain.tsv": "HUM\tWho ?\nLOC\tWhere\tis it ?\n",
    "named.csv": 'id;label;text;text_pair\n7;1;"a\nb";"c d"\n8;;x;y\n',
    "rows.jsonl": '{"text": "a", "label": [1, 2]}\n\n{"text": "b"}\n',
    "tagged.conll": "Anna B-PER\nsees O\n\nParis B-LOC\nis O\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_stream_is_what_is_read_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name].encode())
    columns = Columns(label="other" if name in ("named.csv", "rows.jsonl") else "label")
    wanted = read_examples(path, columns)
    found = TextFile.check(path, Columns())
    rows = list(found)
    assert found.rows == len(rows) == len(wanted)
    assert [row.text for row in rows] == list(wanted.texts)
    assert [row.pair for row in rows] == list(wanted.pairs or [None] * len(rows))
    assert [row.line for row in rows] == list(wanted.lines)
    assert found.pairs == (wanted.pairs is not None)
    assert list(found) == rows


def test_every_row_is_checked_before_the_first_is_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n")
    seen = []
    TextFile.check(path, Columns(), lambda row, where: seen.append((row, where)))
    assert seen == [(TextRow(1, "a"), f"{path}, line 1"), (TextRow(2, "b"), f"{path}, line 2")]


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n")
    found = TextFile.check(path, Columns())
    path.write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="had 2 rows and now has 3"):
        list(found)


def test_chunks_are_bounded_by_rows_and_by_characters() -> None:
    rows = [TextRow(number, "x" * length) for number, length in enumerate((3, 3, 3, 9, 1, 1, 1, 1))]
    found = [[len(row.text) for row in chunk] for chunk in chunks(rows, most=3, characters=7)]
    assert found == [[3, 3], [3], [9], [1, 1, 1], [1]]
