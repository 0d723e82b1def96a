"""Long columns of numbers in Arrow IPC files: written in a stream, read through a memory map.

A file has one column, in record batches of `CHUNK` values (the last one shorter), so that value `n` lies in
batch `n // CHUNK` and nothing needs to be searched or held in memory.
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

    Errors: MissingComponent where it is not installed.
    """
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise MissingComponent(
            "pyarrow is not installed", "", "pip install pyarrow: prepared corpora are Arrow files"
        ) from error
    return pyarrow


class ColumnWriter:
    """Writes one column, whole record batches at a time.

    Args:
        path: the file.
        name: the column's.
        dtype: of the values.
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
            whole = len(held) - len(held) % CHUNK
            for first in range(0, whole, CHUNK):
                self._write(held[first : first + CHUNK])
            self._waiting, self._held = [held[whole:].copy()], len(held) - whole

    def close(self) -> None:
        """Writes what is left and the file's footer."""
        if self._held:
            self._write(np.concatenate(self._waiting))
        self._file.close()

    def _write(self, values: np.ndarray) -> None:
        self._file.write_batch(self._arrow.record_batch([self._arrow.array(values)], schema=self._schema))


class Column:
    """A column under a memory map: the disk's pages come and go, and count as nobody's memory.

    Args:
        path: a file of `ColumnWriter`.

    Errors: InputError where the file is missing, cut short or no such file.
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
        """Values `start` to `stop - 1`, `[stop - start]`; a view where they lie in one batch."""
        first, last = start // CHUNK, max(start, stop - 1) // CHUNK
        if first == last:
            return (
                self._chunks[first][start - first * CHUNK : stop - first * CHUNK] if stop > start else _NONE
            )
        parts = [self._chunks[first][start - first * CHUNK :], *self._chunks[first + 1 : last]]
        return np.concatenate([*parts, self._chunks[last][: stop - last * CHUNK]])

    def take(self, places: np.ndarray) -> np.ndarray:
        """The values at `places`, INT64 `[n]` → `[n]`."""
        if len(self._chunks) == 1:
            return self._chunks[0][places]
        numbers = places // CHUNK
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(len(self._chunks) + 1))
        out = np.empty(len(places), dtype=self._chunks[0].dtype if self._chunks else np.int64)
        for number in np.flatnonzero(np.diff(bounds)):
            own = order[bounds[number] : bounds[number + 1]]
            out[own] = self._chunks[number][places[own] - number * CHUNK]
        return out


_NONE = np.zeros(0, dtype=np.int64)
