"""A prepared corpus: a folder with memory-mapped token ids and a manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file, write_json
from bertmp.data.arrow_column import Column, ColumnWriter
from bertmp.data.tokenizer import Tokenizer

FORMAT = "bertmp-corpus-1"
MANIFEST = "manifest.json"
TOKENS, SENTENCES, DOCUMENTS = "tokens.arrow", "sentences.arrow", "documents.arrow"


@dataclass(frozen=True)
class Counts:
    """The size of a corpus.

    Attributes:
        dropped: pairs left out because one of their texts has no token.
    """

    documents: int
    sentences: int
    tokens: int
    dropped: int = 0


@dataclass(frozen=True)
class Source:
    """The file that a corpus was prepared from."""

    name: str
    sha256: str
    text_column: str
    text_pair_column: str


class StoreWriter:
    """Writes a prepared corpus.

    Args:
        folder: an empty folder.
        tokenizer: the tokenizer of the ids.
        pairs: whether documents are pairs of texts.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, pairs: bool) -> None:
        self._folder, self._tokenizer, self._pairs = folder, tokenizer, pairs
        width = np.dtype(np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32)
        self._tokens = ColumnWriter(folder / TOKENS, "token", width)
        self._sentences = ColumnWriter(folder / SENTENCES, "first_token", np.dtype(np.int64))
        self._documents = ColumnWriter(folder / DOCUMENTS, "first_sentence", np.dtype(np.int64))
        self._counts = Counts(0, 0, 0)
        self._begun = False

    def append(
        self, tokens: np.ndarray, lengths: np.ndarray, begins: np.ndarray, sizes: np.ndarray, dropped: int
    ) -> None:
        """Adds chunks of documents.

        Args:
            tokens: `[tokens]` ids.
            lengths: `[sentences]`, number of tokens, at least 1.
            begins: BOOL `[chunks]`, whether a document begins with the chunk.
            sizes: `[chunks]`, number of sentences.
            dropped: number of pairs left out.
        """
        before = self._counts
        self._tokens.append(tokens)
        self._sentences.append(before.tokens + np.cumsum(lengths, dtype=np.int64) - lengths)
        # Part 0 continues the current document, each later part is a new document.
        part = np.cumsum(begins)
        held = np.bincount(part, weights=sizes, minlength=int(part[-1]) + 1).astype(np.int64)
        new = held > 0
        new[0] &= not self._begun
        self._documents.append((before.sentences + np.cumsum(held) - held)[new])
        self._begun = bool(held[-1] > 0) or (len(held) == 1 and self._begun)
        self._counts = Counts(
            before.documents + int(new.sum()),
            before.sentences + len(lengths),
            before.tokens + len(tokens),
            before.dropped + dropped,
        )

    def close(self, source: Source) -> Counts:
        """Completes the files and writes the manifest."""
        counts = self._counts
        self._sentences.append(np.array([counts.tokens]))
        self._documents.append(np.array([counts.sentences]))
        for column in (self._tokens, self._sentences, self._documents):
            column.close()
        files = {
            name: {"bytes": (self._folder / name).stat().st_size, "sha256": sha256_file(self._folder / name)}
            for name in (TOKENS, SENTENCES, DOCUMENTS)
        }
        write_json(
            self._folder / MANIFEST,
            {
                "format": FORMAT,
                "tokenizer": self._tokenizer.fingerprint(),
                "vocabulary": self._tokenizer.vocabulary_size,
                "pairs": self._pairs,
                "source": asdict(source),
                "counts": asdict(counts),
                "files": files,
            },
        )
        return counts


@dataclass(frozen=True)
class Store:
    """An open prepared corpus.

    Attributes:
        folder: its folder.
        pairs: whether each document is a pair of texts, the second following the first.
        counts: its size.
        tokens: the concatenated token ids.
        sentences: `[sentences + 1]`, offset of each sentence in `tokens`.
        documents: `[documents + 1]`, offset of each document in `sentences`.
    """

    folder: Path
    pairs: bool
    counts: Counts
    tokens: Column
    sentences: Column
    documents: Column

    @classmethod
    def open(cls, folder: Path, tokenizer: Tokenizer) -> Store:
        """Opens a prepared corpus and verifies every file's checksum.

        Raises:
            InputError: it is not a prepared corpus, was made with another tokenizer, or is damaged.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        if manifest["tokenizer"] != tokenizer.fingerprint():
            raise InputError(
                "the corpus was prepared with another tokenizer",
                folder,
                "prepare it again with this checkpoint's tokenizer",
            )
        for name, expected in manifest["files"].items():
            _verify(folder / name, expected)
        return cls._opened(folder, manifest)

    @classmethod
    def _opened(cls, folder: Path, manifest: dict[str, Any]) -> Store:
        counts = Counts(**manifest["counts"])
        columns = [Column(folder / name) for name in (TOKENS, SENTENCES, DOCUMENTS)]
        sizes = [counts.tokens, counts.sentences + 1, counts.documents + 1]
        if [len(column) for column in columns] != sizes:
            raise InputError(
                "the prepared corpus contradicts its manifest", folder, "prepare the corpus again"
            )
        return cls(folder, manifest["pairs"], counts, *columns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files itself."""
        return _reopen, (self.folder,)


def is_store(path: Path) -> bool:
    """Whether `path` is the folder of a prepared corpus."""
    return (path / MANIFEST).is_file()


def fingerprint(folder: Path) -> str:
    """SHA-256 of the manifest, which has the checksums of all files."""
    return sha256_file(folder / MANIFEST)


def read_counts(folder: Path) -> Counts:
    """The size of a prepared corpus, from its manifest."""
    return Counts(**_manifest(folder)["counts"])


def _reopen(folder: Path) -> Store:
    return Store._opened(folder, _manifest(folder))


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    wanted = {"format", "tokenizer", "pairs", "counts", "files"}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not wanted <= set(manifest):
        raise InputError("not a prepared corpus of this version", folder, "prepare the corpus again")
    return manifest


def _verify(path: Path, expected: dict[str, Any]) -> None:
    size = path.stat().st_size if path.is_file() else -1
    if size < 0:
        problem = "the prepared corpus lacks a file"
    elif size < expected["bytes"]:
        problem = "a file of the prepared corpus is cut short"
    elif size > expected["bytes"] or sha256_file(path) != expected["sha256"]:
        problem = "a file of the prepared corpus is damaged"
    else:
        return
    raise InputError(problem, path, "prepare the corpus again")
