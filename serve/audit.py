"""The record of who changed what in a model repository: `audit.jsonl`, which is only ever added to."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bertmp.core.errors import BertmpError, InputError
from bertmp.core.io import plain, writing_to

AUDIT = "audit.jsonl"


@dataclass(frozen=True)
class AuditLog:
    """The record of one model in the repository's file.

    A line is written and flushed to the disk before the next step begins; one that a full disk cuts short is
    taken back. What a crash cut short is the last line alone: the next entry begins on a line of its own, and
    readers leave it out.

    Attributes:
        repository: the model repository.
        model: the text model's name.
        action: the command: `deploy`, `rollback` or `prune`.
    """

    repository: Path
    model: str
    action: str

    @property
    def path(self) -> Path:
        return self.repository / AUDIT

    def write(self, step: str, outcome: str, version: int | None = None, **facts: Any) -> None:
        """Adds an entry.

        Args:
            step: what of it was tried: `inspected`, `staged`, `promoted`, `switched`, `removed`.
            outcome: `done`, or `refused` with the `reason` among the facts.
            version: the version that it is about; None where none was written.
            facts: hashes, figures and reasons; values that JSON has.

        Raises:
            InputError: the file cannot be written.
        """
        head = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "user": _user(),
            "model": self.model,
            "action": self.action,
            "step": step,
            "outcome": outcome,
            "version": version,
        }
        line = json.dumps({**head, **plain(facts)}, ensure_ascii=False) + "\n"
        with writing_to(self.path):
            self.repository.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # Deployments of two models at once do not mix their lines; closing gives the lock back.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _append(descriptor, (_separator(descriptor) + line).encode())
            finally:
                os.close(descriptor)


@contextmanager
def recording(refusal: BaseException) -> Iterator[None]:
    """A block that puts a refusal on record.

    Where the disk does not take that either, the refusal stays what the user is told, and says so.
    """
    try:
        yield
    except InputError as lost:
        if isinstance(refusal, BertmpError):
            unrecorded = f"this is not on record: {lost.what} ({lost.where})"
            refusal.todo = "; ".join(filter(None, [refusal.todo, unrecorded]))


def read_audit(repository: Path) -> Iterator[dict[str, Any]]:
    """The entries, oldest first; lines that are not whole are left out."""
    path = repository / AUDIT
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def _append(descriptor: int, content: bytes) -> None:
    """Writes all of it and flushes it to the disk, or leaves the file as it was.

    Raises:
        OSError: the disk does not take it.
    """
    size, left = os.fstat(descriptor).st_size, memoryview(content)
    try:
        while left:  # a disk that gets full takes a part
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _separator(descriptor: int) -> str:
    """What must stand before a new line: nothing, or the end of one that a crash cut short."""
    size = os.fstat(descriptor).st_size
    return "\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else ""


def _user() -> str:
    """The operating system's user; the number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for its user
        return str(os.getuid())
