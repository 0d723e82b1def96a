"""Data files: every documented shape is read, every broken one is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertmp.core.errors import InputError
from bertmp.data.labels import match_labels
from bertmp.data.readers import (
    Columns,
    read_examples,
)
from bertmp.data.sentences import read_sentences


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_examples(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_text_a_line(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.txt", "one\r\n\n  \ntwo\tparts\n"))
    assert list(examples.texts) == ["one", "two\tparts"]
    assert examples.labels is None
    assert examples.pairs is None
    assert list(examples.lines) == [1, 4]


def test_label_and_text_without_a_header(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.tsv", "HUM\tWho ?\nLOC\tWhere\tis it ?\n"))
    assert list(examples.labels or ()) == ["HUM", "LOC"]
    assert list(examples.texts) == ["Who ?", "Where\tis it ?"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "text\tlabel\ttext_pair\na b\t1\tc d\n"),
        ("a.csv", 'id,label,text,text_pair\n7,1,"a b","c d"\n'),
        ("b.csv", "label\ttext\ttext_pair\n1\ta b\tc d\n"),
        ("a.jsonl", '{"text": "a b", "label": 1, "text_pair": "c d", "more": [1]}\n\n'),
    ],
)
def test_named_columns(tmp_path: Path, name: str, text: str) -> None:
    examples = read_examples(write(tmp_path, name, text))
    assert (examples.texts, examples.pairs, examples.labels) == (["a b"], ["c d"], ["1"])


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"sentence": ["a", "b"], "class": [3, 4], "other": [[1], [2]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    examples = read_examples(tmp_path / "a.parquet", Columns(text="sentence", label="class"))
    assert (examples.texts, examples.labels) == (["a", "b"], ["3", "4"])
    assert "no column 'text'" in refusal(tmp_path / "a.parquet")


def test_other_column_names(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "sentence\tclass\nhello\tgood\n")
    examples = read_examples(path, Columns(text="sentence", label="class"))
    assert (examples.texts, examples.labels) == (["hello"], ["good"])


def test_a_named_text_column_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "label\tquestion\nLOC\tWhere ?\n")
    assert "no column 'sentence'" in refusal(path, columns=Columns(text="sentence"))


def test_a_header_without_a_text_column_is_not_taken_for_a_row(tmp_path: Path) -> None:
    assert "no column 'text'" in refusal(write(tmp_path, "a.tsv", "sentence\tlabel\nhello\tgood\n"))


def test_byte_order_mark_and_quoted_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b'\xef\xbb\xbflabel,text\nham,"two\nlines"\nspam,"a ""quote"""\n')
    examples = read_examples(path)
    assert list(examples.texts) == ["two\nlines", 'a "quote"']
    assert list(examples.lines) == [3, 4]


def test_unicode_separators_do_not_end_a_line(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.tsv", "x\tone\u2028still one\x85and on\ny\ttwo\n"))
    assert list(examples.texts) == ["one\u2028still one\x85and on", "two"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.tsv", "LOC\tWhere ?\nno tab here\n", "a line without a tab"),
        ("a.tsv", "", "no rows"),
        ("a.tsv", "text\tlabel\n", "no rows"),
        ("a.txt", "\n \n", "no rows"),
        ("a.tsv", b"LOC\tfine\nLOC\tcaf\xe9\n", "line 2"),
        ("a.tsv", "LOC\t\n", "no text"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", "3 fields where the header names 2"),
        ("a.tsv", "text\tlabel\tlabel\na\tb\tc\n", "names 'label' twice"),
        ("a.csv", "a,b,c\n", "3 fields and no header"),
        ("a.csv", "review,sentiment\nfine,good\n", "no header that names 'text'"),
        ("a.csv", "Text,Label\nfine,good\n", "name it with --text-column 'Text'"),
        ("a.tsv", "Label\tText\ngood\tfine\n", "name it with --text-column 'Text'"),
        ("a.csv", 'label,text\nham,"never closed\n', "broken CSV"),
        ("a.jsonl", "{'text': 1}\n", "not JSON"),
        ("a.jsonl", "[" * 100_000, "not JSON"),
        ("a.jsonl", '["a"]\n', "not a JSON object"),
        ("a.jsonl", '{"text": ["a", "b"]}\n', "text is not text"),
        ("a.jsonl", '{"text": "\\ud83d"}\n', "half a surrogate pair"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "label": "x"}\n', "no label"),
        ("a.jsonl", '{"text": null, "label": 1}\n{"text": "b", "label": 2}\n', "no text"),
        ("a.parquet", "PAR1 not really", "not a Parquet file"),
        ("a.docx", "x", "unknown kind of data file '.docx'"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    assert says in refusal(write(tmp_path, name, text))


def test_missing_files_folders_and_labels(tmp_path: Path) -> None:
    assert "no such data file" in refusal(tmp_path / "none.tsv")
    assert "a folder" in refusal(tmp_path)
    assert "no labels" in refusal(write(tmp_path, "a.txt", "hello\n"), need_labels=True)


def test_large_numbers_in_json_are_refused_not_crashed_on(tmp_path: Path) -> None:
    assert "not JSON" in refusal(write(tmp_path, "a.jsonl", f'{{"text": {"9" * 5000}}}\n'))


def test_text_survives_every_format(tmp_path: Path) -> None:
    import csv

    import pyarrow
    import pyarrow.parquet

    texts = ["plain", 'with "quotes", commas', "Grüße, 你好 🙂", " leading and trailing ", "<tag> & \\n"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\n" + "".join(f"{text}\n" for text in texts), encoding="utf-8")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in texts)])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    for kind in ("jsonl", "txt", "tsv", "csv", "parquet"):
        assert list(read_examples(tmp_path / f"a.{kind}").texts) == texts, kind


def test_invalid_byte_after_a_byte_order_mark_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", b"\xef\xbb\xbfLOC\tfine\nLOC\tcaf\xe9 au lait\n")
    message = refusal(path)
    assert "byte 0xe9" in message
    assert "line 2" in message


def test_csv_with_carriage_returns_alone_is_read_as_rows(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.csv", b"label,text\rham,one\rspam,two\r"))
    assert (examples.texts, examples.labels) == (["one", "two"], ["ham", "spam"])


def test_fields_of_any_length(tmp_path: Path) -> None:
    long = "good film " * 20000
    examples = read_examples(write(tmp_path, "a.csv", f"text,label\n{long},a\nshort,b\n"))
    assert list(examples.texts) == [long, "short"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    examples = read_examples(write(tmp_path, "a.csv", "text,label\ncafé,1\n".encode(encoding)))
    assert (examples.texts, examples.labels) == (["café"], ["1"])


def test_another_encoding_is_named_by_the_user(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\ncafé,1\n".encode("cp1252"))
    assert "name its encoding with --encoding" in refusal(path)
    assert read_examples(path, Columns(encoding="cp1252")).texts == ["café"]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("text;label\na, b;1\n", Columns()),
        ("label;text\n1;a, b\n", Columns()),
        ("text|label\na, b|1\n", Columns(delimiter="|")),
        ("phrase;label\na, b;1\n", Columns(text="phrase")),
    ],
)
def test_delimiters_are_found_or_named(tmp_path: Path, text: str, columns: Columns) -> None:
    examples = read_examples(write(tmp_path, "a.csv", text), columns)
    assert (examples.texts, examples.labels) == (["a, b"], ["1"])


def test_quotes_around_a_tsv_field_are_not_text(tmp_path: Path) -> None:
    lines = 'text\tlabel\n"he said ""a"""\t1\n"b" and "c"\t2\n"unclosed\t3\n'
    examples = read_examples(write(tmp_path, "a.tsv", lines))
    assert list(examples.texts) == ['he said "a"', '"b" and "c"', '"unclosed']


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"text": "a", "label": NaN}\n', "label is not a number (NaN)"),
        ('{"text": NaN, "label": 1}\n', "text is not a number (NaN)"),
    ],
)
def test_nan_is_no_label_and_no_text(tmp_path: Path, text: str, says: str) -> None:
    message = refusal(write(tmp_path, "a.jsonl", '{"text": "b", "label": 0}\n' + text))
    assert says in message
    assert "line 2" in message


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "a.csv", "text,label\na, 1.0\nb,0\nc,2.00\n"))
    assert list(examples.labels or ()) == ["1", "0", "2"]
    examples = read_examples(write(tmp_path, "b.csv", "text,label\na,1.0\nb,v2\n"))
    assert list(examples.labels or ()) == ["1.0", "v2"]


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.tsv"])
def test_sentences_of_a_conll_file_are_its_texts(tmp_path: Path, name: str) -> None:
    text = "-DOCSTART-\tO\n\nAnna\tB-PER\nsings\tO\n\nin\tO\nLima\tB-LOC\n"
    examples = read_examples(write(tmp_path, name, text))
    assert list(examples.texts) == ["Anna sings", "in Lima"]
    assert examples.labels is None


def test_only_a_file_that_is_read_as_conll_is_said_to_be(tmp_path: Path) -> None:
    conll = write(tmp_path, "a.txt", "Anna\tB-PER\nsings\tO\n\nin\tO\nLima\tB-LOC\n")
    plain = write(tmp_path, "b.txt", "Anna sings\nin Lima\n")
    said: list[str] = []
    for path in (conll, plain):
        read_examples(path, progress=lambda message, *_: said.append(message))
    read_sentences(conll, progress=lambda message, *_: said.append(message))
    assert said == [f"{conll}: read as CoNLL, 2 sentences"] * 2


@pytest.mark.parametrize(
    ("found", "classes", "expected", "note"),
    [
        (("b", "a"), ("b", "a", "c"), {"a": "a", "b": "b"}, ""),
        (("0", "2"), ("NO", "MAYBE", "YES"), {"0": "NO", "2": "YES"}, "taken for the numbers"),
        (("no", "Yes"), ("NO", "YES"), {"no": "NO", "Yes": "YES"}, "but for their case"),
    ],
)
def test_labels_are_matched_with_classes(
    found: tuple[str, ...], classes: tuple[str, ...], expected: dict[str, str], note: str
) -> None:
    match = match_labels(found, classes)
    assert match is not None
    assert match.classes == expected
    assert note in match.note
    assert bool(note) == bool(match.note)


@pytest.mark.parametrize(("found", "classes"), [(("3",), ("a", "b")), (("a", "x"), ("a", "b"))])
def test_labels_that_do_not_fit_are_not_matched(found: tuple[str, ...], classes: tuple[str, ...]) -> None:
    assert match_labels(found, classes) is None


@pytest.mark.parametrize("text", ["Who built the B-52\n", "my type is O\n", "a plan O\nWho built the B-52\n"])
def test_texts_that_end_like_tags_are_texts(tmp_path: Path, text: str) -> None:
    assert list(read_examples(write(tmp_path, "a.txt", text)).texts) == text.splitlines()


def test_booleans_are_one_class_however_they_are_written(tmp_path: Path) -> None:
    csv = read_examples(write(tmp_path, "a.csv", "text,label\na,true\nb,False\n"))
    jsonl = read_examples(
        write(tmp_path, "a.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    )
    assert list(csv.labels or ()) == list(jsonl.labels or ()) == ["True", "False"]


def test_delimiter_of_a_quoted_header_with_a_named_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '"phrase";"label"\n"a, b";1\n')
    assert read_examples(path, Columns(text="phrase")).texts == ["a, b"]
