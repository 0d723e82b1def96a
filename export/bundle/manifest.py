"""The bundle's `manifest.json`: what each stage read, wrote, used and found."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, write_json

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

        Raises:
            InputError: the folder is not a bundle, or the manifest is damaged or of another format.
        """
        path = bundle / "manifest.json"
        if not path.is_file():
            raise InputError("not a bundle: it has no manifest.json", bundle, "make one with 'bertmp export'")
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError("manifest of an unknown format", path, "export the checkpoint again")
        try:
            return cls(TypeAdapter(dict[str, StageRecord]).validate_python(data.get("stages")))
        except ValidationError as error:
            raise InputError("damaged manifest", path, "export the checkpoint again") from error

    def save(self, bundle: Path) -> None:
        """Writes `bundle/manifest.json` atomically."""
        stages = {name: asdict(entry) for name, entry in self.stages.items()}
        write_json(bundle / "manifest.json", {"format": FORMAT, "stages": stages})

    def with_stage(self, name: str, record: StageRecord) -> Manifest:
        """The manifest with `record` under `name`; the stage's earlier entry is replaced."""
        return replace(self, stages={**self.stages, name: record})


def tool_version(package: str) -> str:
    """The installed version of a distribution, or 'not installed'."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def tool_versions(packages: Iterable[str]) -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    versions = {package: tool_version(package) for package in packages}
    installed = {package: version for package, version in versions.items() if version != "not installed"}
    return {"python": platform.python_version(), **installed}
