"""The bundle: the folder that `export` writes and the later stages complete, and its manifest.

A stage whose recorded inputs or outputs no longer match the files is stale, and later stages refuse it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file, write_json
from bertmp.data.tokenizer import Tokenizer, length_limit

FP32_GRAPH = "model.onnx"
LOW_GRAPHS = {"fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx"}
"""Low precision → the file of its graph."""
FP16_GRAPH = LOW_GRAPHS["fp16"]
PLAN = "precision-plan.json"
MANIFEST = "manifest.json"
CONFIG = "config.json"
LABELS = "labels.txt"
ENGINE = "engine/model.plan"
NETWORK = "engine/network.json"

EXPORT, CONVERT, BUILD_ENGINE, PARITY = "export", "convert", "build-engine", "parity"
"""The stages' names in the manifest."""


FORMAT = 1


_MADE = {
    EXPORT: "FP32 graph",
    CONVERT: "low-precision graph",
    BUILD_ENGINE: "engine",
    PARITY: "parity report",
}
"""What a stage makes, for messages."""


def read_labels(path: Path) -> list[str]:
    """The classes' names, one per line; only a line feed ends a line: names may hold U+2028 or U+0085."""
    return path.read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")


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
        from pydantic import TypeAdapter, ValidationError

        path = bundle / MANIFEST
        if not path.is_file():
            raise InputError(f"not a bundle: it has no {MANIFEST}", bundle, "make one with 'bertmp export'")
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
        write_json(bundle / MANIFEST, {"format": FORMAT, "stages": stages})

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


class Bundle:
    """A bundle on the disk. A command opens it once: the manifest is read once, and a file is hashed once.

    Attributes:
        folder: the bundle's folder.
        manifest: its stages; `record` adds to them.
    """

    def __init__(self, folder: Path, manifest: Manifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest or Manifest()
        self._digests: dict[tuple[str, int, int], str] = {}

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Opens a bundle after checking that it has its FP32 graph.

        Raises:
            InputError: `folder` is not a bundle.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError("no such bundle", folder, "make one with 'bertmp export'")
        manifest = Manifest.load(folder)
        if not (folder / FP32_GRAPH).is_file():
            raise InputError(f"the bundle has no {FP32_GRAPH}", folder, "export the checkpoint again")
        return cls(folder, manifest)

    def sha256(self, name: str) -> str:
        """SHA-256 of one of the bundle's files; it is read again only where it has changed since."""
        path = self.folder / name
        stat = path.stat()
        key = (name, stat.st_mtime_ns, stat.st_size)
        if key not in self._digests:
            self._digests[key] = sha256_file(path)
        return self._digests[key]

    def stage(self, name: str, command: str) -> StageRecord:
        """A stage's entry, after checking that it is there and fresh.

        Args:
            command: the command that runs the stage, for the message.

        Raises:
            InputError: the stage has not run, or a file that it read or wrote has changed since.
        """
        record = self.manifest.stages.get(name)
        if record is None:
            raise InputError(
                f"the bundle has no {_MADE.get(name, name)}", self.folder, f"run '{command}' first"
            )
        for file, digest in {**record.inputs, **record.outputs}.items():
            if not (self.folder / file).is_file() or self.sha256(file) != digest:
                what = f"the {name} stage is stale: {file} changed"
                raise InputError(what, self.folder, f"run '{command}' again")
        return record

    def record(
        self,
        name: str,
        *,
        inputs: Iterable[str],
        outputs: Iterable[str],
        tools: Mapping[str, str] | Iterable[str],
        settings: Mapping[str, Any],
        results: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """Adds a stage's entry to the manifest and writes the manifest.

        Args:
            inputs, outputs: names of files in the bundle.
            tools: packages that did the work, or their versions by name.
            settings, results, seconds: see `StageRecord`.
        """
        versions = tool_versions(() if isinstance(tools, Mapping) else tools)
        entry = StageRecord(
            inputs={file: self.sha256(file) for file in inputs},
            outputs={file: self.sha256(file) for file in outputs},
            tools={**versions, **(tools if isinstance(tools, Mapping) else {})},
            settings=dict(settings),
            results=dict(results),
            seconds=round(seconds, 3),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        self.manifest = self.manifest.with_stage(name, entry)
        self.manifest.save(self.folder)

    @property
    def low_graph(self) -> str | None:
        """The low-precision graph's file, as the manifest has it; None where the bundle has none.

        Version 0.1 called a BF16 graph `model.fp16.onnx`, too; `low_precision` tells them apart.
        """
        converted = self.manifest.stages.get(CONVERT)
        names = [name for name in converted.outputs if name in LOW_GRAPHS.values()] if converted else []
        return names[0] if names else None

    @cached_property
    def low_precision(self) -> str:
        """`fp16` or `bf16`: the low-precision graph's, which its plan has."""
        path = self.folder / PLAN
        plan = read_json(path) if path.is_file() else {}
        return str(plan.get("target", "fp16")) if isinstance(plan, dict) else "fp16"

    @property
    def lowest_graph(self) -> Path:
        """The low-precision graph where the bundle has one, else the FP32 graph."""
        return self.folder / (self.low_graph or FP32_GRAPH)

    def weights_beside(self, stage: str, graph: str) -> list[str]:
        """The files that hold the weights of a graph of more than 2 GiB; usually none."""
        return [name for name in self.manifest.stages[stage].outputs if name.startswith(f"{graph}.")]

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, Hugging Face's keys."""
        return dict(read_json(self.folder / CONFIG))

    @property
    def task(self) -> str:
        """The head that was exported, such as `classification`."""
        exported = self.manifest.stages.get(EXPORT)
        return str(exported.settings.get("task", "classification")) if exported else "classification"

    @property
    def max_positions(self) -> int:
        """The longest sequence that the graph takes, in tokens; texts may be truncated to fewer."""
        return int(self.config["max_position_embeddings"])

    @cached_property
    def labels(self) -> list[str]:
        """The classes' names, in the order of the logits; empty for a head without classes."""
        path = self.folder / LABELS
        return read_labels(path) if path.is_file() else []

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, which truncates texts where the checkpoint says."""
        return Tokenizer.load(self.folder, length_limit(self.folder, self.max_positions))
