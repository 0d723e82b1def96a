"""Long columns of numbers in Arrow IPC files: written as a stream, read through a memory map.

A file has one column, in record batches of `CHUNK` values (the last one shorter), so that value `n` is in
batch `n // CHUNK` and no index is needed.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bertmp.core.errors import InputError, MissingComponent

CHUNK = 1 << 20


def arrow() -> ModuleType:
    """The pyarrow library.

    Raises:
        MissingComponent: it is not installed.
    """
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise MissingComponent(
            "pyarrow is not installed", "", "pip install pyarrow: prepared corpora are Arrow files"
        ) from error
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
            raise InputError("the prepared corpus lacks a file", path, "prepare the corpus again") from error
        except (library.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"damaged file of a prepared corpus: {error}", path, "prepare the corpus again"
            ) from error
        self._chunks = [batch.column(0).to_numpy(zero_copy_only=True) for batch in batches]
        self._length = sum(len(chunk) for chunk in self._chunks)

    def __len__(self) -> int:
        return self._length

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Values `start` to `stop - 1`, `[stop - start]`; a view if they are in one batch."""
        first, last = start // CHUNK, max(start, stop - 1) // CHUNK
        if first == last:
            return (
                self._chunks[first][start - first * CHUNK : stop - first * CHUNK] if stop > start else _NONE
            )
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


_NONE = np.zeros(0, dtype=np.int64)
