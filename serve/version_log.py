"""The record of a model's versions: `versions.json` in the text model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable, read_json, write_json

FORMAT = 1
FILE = "versions.json"

State = Literal["live", "superseded", "retired", "refused", "pruned"]
"""Live: the one that answers. Superseded: an earlier one, ready for a rollback. Retired: rolled back, can
come back. Refused: a server could not answer with it. Pruned: not needed. The last two have no files."""


@dataclass(frozen=True)
class VersionRecord(JsonSerializable):
    """One version of a model.

    Attributes:
        name: the model's name.
        version: its number in Triton.
        state: see State.
        fingerprint: SHA-256 over everything that decides its answers; empty where it is not known.
        parity: the scalars of the bundle's parity, `passed` among them; None where it was not checked.
        created: ISO 8601, UTC.
        note: why it was refused, or that the record was made from the folder; empty otherwise.
        signed_by: SHA-256 of the public key that it was checked against; empty where none was trusted.
        accepted: the verdict that was taken on the user's word, `incomplete` or `not checked`; else empty.
        precision: what a machine without a GPU runs its graph in, where it can: `fp32` or `bf16`.
    """

    name: str
    version: int
    state: State
    fingerprint: str
    parity: Mapping[str, Any] | None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    note: str = ""
    signed_by: str = ""
    accepted: str = ""
    precision: str = "fp32"

    def to_json(self) -> dict[str, Any]:
        """Plain values, without what 0.1 did not know where that is empty."""
        values = super().to_json()
        return {name: one for name, one in values.items() if one or name not in ("signed_by", "accepted")}

    @classmethod
    def of_folder(cls, folder: Path) -> VersionRecord:
        """A record of a version that has none: what its folder in the text model tells."""
        created = datetime.fromtimestamp(folder.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
        note = "recorded from its folder"
        return cls(folder.parent.name, int(folder.name), "superseded", "", None, created, note)

    @property
    def parity_verdict(self) -> str:
        """`passed`, `incomplete`, `failed` or `not checked`."""
        if self.parity is None:
            return "not checked"
        return str(self.parity.get("verdict") or ("passed" if self.parity.get("passed") else "failed"))


@dataclass(frozen=True)
class VersionLog:
    """The versions of one model, oldest first.

    Attributes:
        path: the file.
        records: one per version.
    """

    path: Path
    records: tuple[VersionRecord, ...]

    @classmethod
    def load(cls, model: Path) -> VersionLog:
        """Reads the file in a model's folder; without one, nothing was deployed.

        Raises:
            InputError: the file is damaged or of another format.
        """
        path = model / FILE
        if not path.is_file():
            return cls(path, ())
        data = read_json(path)
        try:
            if data["format"] != FORMAT:
                raise KeyError("format")
            return cls(path, tuple(VersionRecord(name=model.name, **entry) for entry in data["versions"]))
        except (KeyError, TypeError) as error:
            todo = "restore it, or deploy under another name"
            raise InputError("not a log of versions", path, todo) from error

    def save(self) -> None:
        """Writes the file, completely or not at all."""
        # What 0.1 does not know is left out where it says nothing new.
        left_out = [("name", self.path.parent.name), ("precision", "fp32")]
        entries = [
            {key: value for key, value in entry.to_json().items() if (key, value) not in left_out}
            for entry in self.records
        ]
        write_json(self.path, {"format": FORMAT, "versions": entries})

    def find(self, version: int | None) -> VersionRecord | None:
        """The record of a version; None where it has none."""
        return next((entry for entry in self.records if entry.version == version), None)

    def __getitem__(self, version: int) -> VersionRecord:
        """The record of a version that has one."""
        return next(entry for entry in self.records if entry.version == version)

    def put(self, record: VersionRecord) -> VersionLog:
        """The log with `record` in place of its version's, or at the end where that has none."""
        if self.find(record.version) is None:
            return replace(self, records=(*self.records, record))
        changed = (record if entry.version == record.version else entry for entry in self.records)
        return replace(self, records=tuple(changed))

    def with_folders(self, versions: Sequence[int]) -> VersionLog:
        """The log with a record of each of the versions; those without an entry get it from their folder."""
        found = [VersionRecord.of_folder(self.path.parent / str(version)) for version in versions]
        added = [record for record in found if self.find(record.version) is None]
        return replace(self, records=tuple(sorted((*self.records, *added), key=lambda one: one.version)))

    def with_live(self, live: int | None) -> VersionLog:
        """The log after `live` became the version that answers; the one that was live is superseded."""
        changed = []
        for record in self.records:
            state: State = "superseded" if record.state == "live" else record.state
            changed.append(replace(record, state="live" if record.version == live else state))
        return replace(self, records=tuple(changed))
