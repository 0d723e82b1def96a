"""A prepared corpus: a folder with memory-mapped token ids and a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.io import read_json, sha256_file, write_json
from bertmp.data.tokenizer import Tokenizer

FORMAT = "bertmp-corpus-1"
MANIFEST = "manifest.json"
TOKENS, SENTENCES, DOCUMENTS = "tokens.arrow", "sentences.arrow", "documents.arrow"
_AGAIN = "prepare the corpus again"


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

    def close(self, source: Mapping[str, str]) -> Counts:
        """Completes the files and writes the manifest; `source` describes the file that was prepared."""
        counts = self._counts
        self._sentences.append(np.array([counts.tokens]))
        self._documents.append(np.array([counts.sentences]))
        for column in (self._tokens, self._sentences, self._documents):
            column.close()
        paths = [self._folder / name for name in (TOKENS, SENTENCES, DOCUMENTS)]
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in paths}
        write_json(
            self._folder / MANIFEST,
            {
                "format": FORMAT,
                "tokenizer": self._tokenizer.fingerprint(),
                "vocabulary": self._tokenizer.vocabulary_size,
                "pairs": self._pairs,
                "source": dict(source),
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
    def open(cls, folder: Path, tokenizer: Tokenizer | None) -> Store:
        """Opens a prepared corpus and verifies every file's checksum; None where it has been verified before.

        Raises:
            InputError: it is not a prepared corpus, was made with another tokenizer, or is damaged.
        """
        manifest = read_json(folder / MANIFEST)
        wanted = {"format", "tokenizer", "pairs", "counts", "files"}
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not wanted <= set(manifest):
            raise InputError("not a prepared corpus of this version", folder, _AGAIN)
        if tokenizer is not None:
            if manifest["tokenizer"] != tokenizer.fingerprint():
                todo = "prepare it again with this checkpoint's tokenizer"
                raise InputError("the corpus was prepared with another tokenizer", folder, todo)
            for name, expected in manifest["files"].items():
                _verify(folder / name, expected)
        counts = Counts(**manifest["counts"])
        columns = [Column(folder / name) for name in (TOKENS, SENTENCES, DOCUMENTS)]
        sizes = [counts.tokens, counts.sentences + 1, counts.documents + 1]
        if [len(column) for column in columns] != sizes:
            raise InputError("the prepared corpus contradicts its manifest", folder, _AGAIN)
        return cls(folder, manifest["pairs"], counts, *columns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files itself."""
        return Store.open, (self.folder, None)


def is_store(path: Path) -> bool:
    """Whether `path` is the folder of a prepared corpus."""
    return (path / MANIFEST).is_file()


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
    raise InputError(problem, path, _AGAIN)


CHUNK = 1 << 20


def arrow() -> ModuleType:
    """The pyarrow library.

    Raises:
        MissingComponent: it is not installed.
    """
    try:
        import pyarrow.ipc
    except ImportError as error:
        todo = "pip install pyarrow: prepared corpora are Arrow files"
        raise MissingComponent("pyarrow is not installed", "", todo) from error
    return pyarrow


class ColumnWriter:
    """Writes one column in full record batches.

    Args:
        path: the file.
        name: name of the column.
        dtype: dtype of the values.
    """

    def __init__(self, path: Path, name: str, dtype: np.dtype[Any]) -> None:
        self._arrow = arrow()
        self._schema = self._arrow.schema([(name, self._arrow.from_numpy_dtype(dtype))])
        self._file = self._arrow.ipc.new_file(str(path), self._schema)
        self._dtype = dtype
        self._waiting: list[np.ndarray] = []
        self._held = 0

    def append(self, values: np.ndarray) -> None:
        """Adds `[n]` values."""
        self._waiting.append(values.astype(self._dtype, copy=False))
        self._held += len(values)
        if self._held >= CHUNK:
            held = np.concatenate(self._waiting)
            full = len(held) - len(held) % CHUNK
            for first in range(0, full, CHUNK):
                self._write(held[first : first + CHUNK])
            self._waiting, self._held = [held[full:].copy()], len(held) - full

    def close(self) -> None:
        """Writes the remaining values and the footer."""
        if self._held:
            self._write(np.concatenate(self._waiting))
        self._file.close()

    def _write(self, values: np.ndarray) -> None:
        self._file.write_batch(self._arrow.record_batch([self._arrow.array(values)], schema=self._schema))


class Column:
    """A memory-mapped column: its pages are the kernel's cache and take no memory of the process.

    Args:
        path: a file of `ColumnWriter`.

    Raises:
        InputError: the file is missing, truncated or of another kind.
    """

    def __init__(self, path: Path) -> None:
        library = arrow()
        try:
            file = library.ipc.open_file(library.memory_map(str(path)))
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        except FileNotFoundError as error:
            raise InputError("the prepared corpus lacks a file", path, _AGAIN) from error
        except (library.ArrowException, OSError, ValueError) as error:
            raise InputError(f"damaged file of a prepared corpus: {error}", path, _AGAIN) from error
        self._chunks = [batch.column(0).to_numpy(zero_copy_only=True) for batch in batches]
        self._length = sum(len(chunk) for chunk in self._chunks)

    def __len__(self) -> int:
        return self._length

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Values `start` to `stop - 1`, `[stop - start]`; a view if they are in one batch."""
        first, last = start // CHUNK, max(start, stop - 1) // CHUNK
        if first == last:
            own = slice(start - first * CHUNK, stop - first * CHUNK)
            return self._chunks[first][own] if stop > start else np.zeros(0, dtype=np.int64)
        parts = [self._chunks[first][start - first * CHUNK :], *self._chunks[first + 1 : last]]
        return np.concatenate([*parts, self._chunks[last][: stop - last * CHUNK]])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The values at `indices`, INT64 `[n]` → `[n]`."""
        if len(self._chunks) == 1:
            return self._chunks[0][indices]
        numbers = indices // CHUNK
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(len(self._chunks) + 1))
        out = np.empty(len(indices), dtype=self._chunks[0].dtype if self._chunks else np.int64)
        for number in np.flatnonzero(np.diff(bounds)):
            own = order[bounds[number] : bounds[number + 1]]
            out[own] = self._chunks[number][indices[own] - number * CHUNK]
        return out
