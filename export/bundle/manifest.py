"""The bundle's `manifest.json`: what each stage read, wrote, used and found.

A stage whose recorded inputs no longer match the files is stale, and later stages refuse it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file, write_json

FORMAT = 1


@dataclass(frozen=True)
class StageRecord:
    """One stage's entry.

    Attributes:
        inputs, outputs: file name relative to the bundle → SHA-256 of its bytes.
        tools: name → version of what did the work.
        settings: the effective options.
        results: what the stage measured; plain JSON values.
        seconds: wall time.
        created: ISO 8601, UTC.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    tools: Mapping[str, str]
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    seconds: float
    created: str


@dataclass(frozen=True)
class Manifest:
    """The stages of one bundle, in the order in which they ran."""

    stages: Mapping[str, StageRecord] = field(default_factory=dict)

    @classmethod
    def load(cls, bundle: Path) -> Manifest:
        """Reads `bundle/manifest.json`.

        Errors: InputError where the folder is no bundle or the manifest is of another format.
        """
        path = bundle / "manifest.json"
        if not path.is_file():
            raise InputError("not a bundle: it has no manifest.json", bundle, "make one with 'bertmp export'")
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError("manifest of an unknown format", path, "export the checkpoint again")
        try:
            return cls({name: StageRecord(**entry) for name, entry in data["stages"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("damaged manifest", path, "export the checkpoint again") from error

    def save(self, bundle: Path) -> None:
        """Writes `bundle/manifest.json`, whole or not at all."""
        stages = {name: asdict(entry) for name, entry in self.stages.items()}
        write_json(bundle / "manifest.json", {"format": FORMAT, "stages": stages})

    def with_stage(self, name: str, record: StageRecord) -> Manifest:
        """The manifest with `record` under `name`; the stage's earlier entry is replaced."""
        return replace(self, stages={**self.stages, name: record})

    def stage(self, name: str, bundle: Path, command: str) -> StageRecord:
        """The entry `name`, after checking that it is there and fresh.

        Errors: InputError where the stage has not run, or where a file it read or wrote has changed
        since; the line names the file and `command`, which makes it anew.
        """
        record = self.stages.get(name)
        if record is None:
            raise InputError(f"the bundle has no {name} stage", bundle, f"run '{command}' first")
        changed = stale_files(record, bundle)
        if changed:
            raise InputError(
                f"the {name} stage is stale: {changed[0]} changed", bundle, f"run '{command}' again"
            )
        return record


def stale_files(record: StageRecord, bundle: Path) -> list[str]:
    """Those of the stage's files, read or written, that are missing or differ from the record."""
    files = {**record.inputs, **record.outputs}
    return [
        name
        for name, digest in files.items()
        if not (bundle / name).is_file() or sha256_file(bundle / name) != digest
    ]


def fingerprints(bundle: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of each of the bundle's files."""
    return {name: sha256_file(bundle / name) for name in names}


def record(
    bundle: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    tools: list[str],
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    seconds: float,
) -> StageRecord:
    """A stage's entry made from its files in `bundle` and the installed versions of `tools`."""
    return StageRecord(
        inputs=fingerprints(bundle, inputs),
        outputs=fingerprints(bundle, outputs),
        tools={"python": platform.python_version(), **{tool: tool_version(tool) for tool in tools}},
        settings=dict(settings),
        results=dict(results),
        seconds=round(seconds, 3),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def tool_version(package: str) -> str:
    """The installed version of a distribution, or 'not installed'."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
