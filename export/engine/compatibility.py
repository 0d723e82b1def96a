"""Checks that an engine is the one its `network.json` describes, and that it fits the runtime and the GPU.

The engine's own format is not documented, and a runtime that refuses an engine returns an error number. So
the build writes these facts beside the engine, and they are checked before a runtime opens the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.export.engine.builders import runs_on
from bertmp.export.engine.supervisor import ENGINE_FILE, NETWORK_FILE
from bertmp.export.engine.triton_releases import loads_later


@dataclass(frozen=True)
class EngineFile:
    """An engine and what its build recorded about it.

    Attributes:
        path: the engine.
        builder, builder_version: what built it.
        compute_capability: the GPUs that it was built for.
        profiles: its optimisation profiles, as `MIN:OPT:MAX`, in their order.
        weights: `full`, `refittable` or `stripped`.
        version_compatible: whether later versions load it as well.
    """

    path: Path
    builder: str
    builder_version: str
    compute_capability: tuple[str, ...]
    profiles: tuple[str, ...]
    weights: str
    version_compatible: bool


def open_engine(folder: Path) -> EngineFile:
    """Reads an engine's folder and checks the file's bytes.

    Raises:
        InputError: a file is missing, the engine is truncated or another, or no build of ours wrote
            `network.json`.
    """
    path, recorded = folder / ENGINE_FILE, _read(folder)
    if not path.is_file():
        raise InputError("no engine", path, "build it with 'bertmp build-engine'")
    size = path.stat().st_size
    if size < recorded["engine_bytes"]:
        raise InputError(
            f"the engine is truncated: {size} of {recorded['engine_bytes']} bytes", path, "build it again"
        )
    if sha256_file(path) != recorded["engine_sha256"]:
        raise InputError(f"the engine is not the one that {NETWORK_FILE} is about", path, "build it again")
    return EngineFile(
        path,
        recorded["builder"],
        recorded["builder_version"],
        tuple(recorded["compute_capability"]),
        tuple(recorded["profiles"]),
        recorded["weights"],
        bool(recorded["version_compatible"]),
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NETWORK_FILE
    recorded = read_json(path)
    needed = ("builder", "builder_version", "compute_capability", "profiles", "engine_bytes", "engine_sha256",
              "weights", "version_compatible")  # fmt: skip
    missing = [name for name in needed if not isinstance(recorded, dict) or name not in recorded]
    if missing:
        raise InputError(f"not the description of an engine: no {missing[0]}", path, "build the engine again")
    return dict(recorded)


def require_runtime(engine: EngineFile, builder: str, version: str) -> None:
    """Checks an engine against an installed runtime.

    Raises:
        InputError: an engine of another builder or version, or one without its weights.
    """
    if engine.builder != builder:
        raise InputError(
            f"the engine is of {engine.builder}, and {builder} is installed", engine.path,
            f"build it with --builder {builder}",
        )  # fmt: skip
    later = engine.version_compatible and loads_later(engine.builder_version, version)
    if engine.builder_version != version and not later:
        raise InputError(
            f"the engine is of {builder} {engine.builder_version}, and {version} is installed", engine.path,
            "build it again",
        )  # fmt: skip
    if engine.weights == "stripped":
        raise InputError(
            "the engine is without its weights", engine.path, "build it with --weights full to run it here"
        )


def require_device(engine: EngineFile, name: str, capability: str) -> None:
    """Checks an engine against a GPU.

    Raises:
        InputError: it was built for others.
    """
    if not runs_on(engine.compute_capability, capability):
        built_for = ", ".join(engine.compute_capability) or "another GPU"
        raise InputError(
            f"the engine is for compute capability {built_for}, and {name} has {capability}", engine.path,
            "build it on this machine",
        )  # fmt: skip
