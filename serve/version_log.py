"""`versions.json`: what is known of each version of a model, the retired and the refused ones too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, write_json

FORMAT = 1
FILE = "versions.json"

State = Literal["live", "superseded", "retired", "refused"]
"""Live: the one that answers. Superseded: an earlier one, ready for a rollback. Retired: rolled back.
Refused: a server could not answer with it, and its files are gone."""


@dataclass(frozen=True)
class VersionRecord:
    """One version of a model.

    Attributes:
        name: the model's name.
        version: Triton's number of it.
        state: see State.
        fingerprint: SHA-256 over everything that decides its answers.
        parity: what the bundle's parity found, `passed` among it; None where it was not checked.
        created: ISO 8601, UTC.
        note: why it was refused; empty otherwise.
    """

    name: str
    version: int
    state: State
    fingerprint: str
    parity: Mapping[str, Any] | None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    note: str = ""

    @property
    def parity_in_words(self) -> str:
        if self.parity is None:
            return "not checked"
        return "passed" if self.parity.get("passed") else "failed"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def load(model: Path) -> list[VersionRecord]:
    """The records in a model's folder, oldest first; none where it was never deployed.

    Errors: InputError where the file is damaged or of another format.
    """
    path = model / FILE
    if not path.is_file():
        return []
    data = read_json(path)
    try:
        if data["format"] != FORMAT:
            raise KeyError("format")
        return [VersionRecord(name=model.name, **entry) for entry in data["versions"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            "not a record of versions", path, "restore it, or deploy under another name"
        ) from error


def save(model: Path, records: list[VersionRecord]) -> None:
    """Writes the records, whole or not at all."""
    entries = [{key: value for key, value in asdict(entry).items() if key != "name"} for entry in records]
    write_json(model / FILE, {"format": FORMAT, "versions": entries})


def with_live(records: list[VersionRecord], live: int | None) -> list[VersionRecord]:
    """The records after `live` became the one that answers: the one before it is superseded."""
    return [_restate(entry, live) for entry in records]


def _restate(entry: VersionRecord, live: int | None) -> VersionRecord:
    if entry.version == live:
        return replace(entry, state="live")
    return replace(entry, state="superseded") if entry.state == "live" else entry


def replaced(records: list[VersionRecord], changed: VersionRecord) -> list[VersionRecord]:
    """The records with `changed` in the place of its version's entry."""
    return [changed if entry.version == changed.version else entry for entry in records]
