"""A Triton model repository on the disk: writing, retiring and removing versions.

A version of a text model is two folders, NAME_encoder/N and NAME/N. The encoder's is written first and
removed last, so that no text version is ever without its encoder. Nothing here decides or asks a server.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from bertmp.core.errors import InputError
from bertmp.core.io import (
    JsonSerializable,
    atomic_folder,
    file_lock,
    read_json,
    write_json,
    write_text,
    writing_to,
)
from bertmp.serve.model_config import (
    ModelSignature,
    encoder_name,
    model_files,
    read_model_config,
    read_signature,
    render,
    set_engine,
)

RETIRED = ".retired"
"""Where rolled-back versions are kept: Triton takes only folders named by a number as versions."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class ModelFolders:
    """The two folders of one text model.

    Attributes:
        repository: the model repository.
        name: the text model's name.
    """

    repository: Path
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.endswith("_encoder"):
            todo = "use letters, digits, - _ . and no ending in _encoder"
            raise InputError(f"'{self.name}' cannot be a model's name", "", todo)

    @property
    def text(self) -> Path:
        return self.repository / self.name

    @property
    def encoder(self) -> Path:
        return self.repository / encoder_name(self.name)

    def live(self) -> int | None:
        """The version that Triton takes: the highest number; None where there is none."""
        return max(numbered(self.text), default=None)

    def next_version(self) -> int:
        """A number above every one that was ever used, since Triton takes the highest."""
        used = [entry.version for entry in VersionLog.load(self.text).records]
        for folder in (self.text, self.encoder):
            used += numbered(folder) + numbered(folder / RETIRED)
        return max(used, default=0) + 1

    def locked(self) -> AbstractContextManager[None]:
        """Holds the model's lock: of two deployments at once, the second waits."""
        return file_lock(self.text / ".lock")

    def write_configs(
        self, signature: ModelSignature, profiles: int | None, version_compatible: bool = False
    ) -> None:
        """Writes both models' configurations.

        Files that have the same signature already stay as they are, so that a person's tuning survives;
        only what the engine decides follows it.

        Args:
            profiles: the engine's optimisation profiles; None where the version has no engine.
            version_compatible: whether the engine is for later versions of TensorRT, too.
        """
        if not self._has_signature(signature):
            for path, content in model_files(self.name, signature, profiles, version_compatible).items():
                write_text(self.repository / path, content)
        elif profiles is not None:
            file = self.encoder / "config.pbtxt"
            config = read_model_config(file)
            if set_engine(config, profiles, version_compatible):
                write_text(file, render(config))

    def _has_signature(self, signature: ModelSignature) -> bool:
        paths = (self.repository / path for path in model_files(self.name, signature))
        return all(map(Path.is_file, paths)) and read_signature(self.repository, self.name) == signature

    def write_version(
        self, version: int, fill_encoder: Callable[[Path], None], fill_text: Callable[[Path], None]
    ) -> None:
        """Writes both folders of a version, each completely or not at all.

        Args:
            fill_encoder, fill_text: fill the empty folder they are given.
        """
        try:
            with atomic_folder(self.encoder / str(version)) as folder:
                fill_encoder(folder)
            with atomic_folder(self.text / str(version)) as folder:
                fill_text(folder)
        except BaseException:
            self.remove(version)
            raise

    def remove(self, version: int) -> None:
        """Removes both folders of a version: first out of Triton's sight, then from the disk."""
        for folder in (self.text, self.encoder):
            retire(folder, version)
            shutil.rmtree(folder / RETIRED / str(version), ignore_errors=True)

    def cleanup(self) -> None:
        """Removes what an interrupted deployment left: temporary folders, encoders without a text model."""
        for folder in (self.text, self.encoder):
            for path in [*folder.glob(".*.part"), *folder.glob(".*.old")]:
                shutil.rmtree(path, ignore_errors=True)
        for version in set(numbered(self.encoder)) - set(numbered(self.text)):
            if version in numbered(self.text / RETIRED):  # a rollback was interrupted half-way
                retire(self.encoder, version)
            else:
                self.remove(version)


def retire(model: Path, version: int) -> None:
    """Moves a version's folder to where Triton does not look."""
    _move(model / str(version), model / RETIRED / str(version))


def restore(model: Path, version: int) -> None:
    """Undoes `retire`."""
    _move(model / RETIRED / str(version), model / str(version))


def _move(source: Path, target: Path) -> None:
    if source.is_dir():
        with writing_to(target):
            target.parent.mkdir(exist_ok=True)
            os.replace(source, target)


def numbered(folder: Path) -> list[int]:
    """The versions in a model's folder, lowest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def servable(repository: Path) -> list[str]:
    """The models that have a version to serve, whoever made them.

    Raises:
        InputError: there is no such folder, nothing in it can be served, or a model of the Python backend
            lacks its code (Triton would wait for it for minutes).
    """
    _require_folder(repository)
    names = [path.parent.name for path in sorted(repository.glob("*/config.pbtxt")) if numbered(path.parent)]
    if not names:
        raise InputError("the repository has no version to serve", repository, "run 'bertmp deploy' first")
    for model in (repository / name for name in names):
        config = read_model_config(model / "config.pbtxt")
        code = model / str(numbered(model)[-1]) / (config.default_model_filename or "model.py")
        if config.backend == "python" and not code.is_file():
            raise InputError("the version has no code", code, "deploy the model again")
    return names


def all_models(repository: Path) -> list[str]:
    """The text models that were deployed at least once, in order."""
    _require_folder(repository)
    return sorted(path.parent.name for path in repository.glob(f"*/{FILE}"))


def _require_folder(repository: Path) -> None:
    if not repository.is_dir():
        raise InputError("no such model repository", repository, "make one with 'bertmp deploy'")


FORMAT = 1
FILE = "versions.json"

State = Literal["live", "superseded", "retired", "refused"]
"""Live: the one that answers. Superseded: an earlier one, ready for a rollback. Retired: rolled back.
Refused: a server could not answer with it, and its files are gone."""


@dataclass(frozen=True)
class VersionRecord(JsonSerializable):
    """One version of a model.

    Attributes:
        name: the model's name.
        version: its number in Triton.
        state: see State.
        fingerprint: SHA-256 over everything that decides its answers.
        parity: the scalars of the bundle's parity, `passed` among them; None where it was not checked.
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
        entries = [
            {key: value for key, value in asdict(entry).items() if key != "name"} for entry in self.records
        ]
        write_json(self.path, {"format": FORMAT, "versions": entries})

    def find(self, version: int | None) -> VersionRecord | None:
        """The record of a version; None where it has none."""
        return next((entry for entry in self.records if entry.version == version), None)

    def put(self, record: VersionRecord) -> VersionLog:
        """The log with `record` in place of its version's, or at the end where that has none."""
        if self.find(record.version) is None:
            return replace(self, records=(*self.records, record))
        changed = (record if entry.version == record.version else entry for entry in self.records)
        return replace(self, records=tuple(changed))

    def with_live(self, live: int | None) -> VersionLog:
        """The log after `live` became the version that answers; the one that was live is superseded."""
        changed = []
        for record in self.records:
            state: State = "superseded" if record.state == "live" else record.state
            changed.append(replace(record, state="live" if record.version == live else state))
        return replace(self, records=tuple(changed))
