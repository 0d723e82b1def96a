"""Whether an engine file is what its `network.json` says, and fits the runtime and the GPU it is to run on.

An engine says none of this in a form that NVIDIA documents, and a runtime that refuses one gives a number.
So the build writes it beside the engine, and it is checked before a runtime sees the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file
from bertmp.export.engine.builders import runs_on
from bertmp.export.engine.job import ENGINE_FILE, NETWORK_FILE
from bertmp.export.engine.triton_releases import loads_later


@dataclass(frozen=True)
class EngineFile:
    """An engine with what its build wrote down.

    Attributes:
        path: the engine.
        builder, builder_version: what built it.
        compute_capability: the GPUs that it is for.
        profiles: its profiles, as `MIN:OPT:MAX`, in their order.
        weights: `full`, `refittable` or `stripped`.
        version_compatible: whether later versions load it, too.
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

    Errors: InputError where a file is missing, where the engine is truncated or another, or where no build
    of ours wrote `network.json`.
    """
    path, told = folder / ENGINE_FILE, _read(folder)
    if not path.is_file():
        raise InputError("no engine", path, "build it with 'bertmp build-engine'")
    size = path.stat().st_size
    if size < told["engine_bytes"]:
        raise InputError(
            f"the engine is truncated: {size} of {told['engine_bytes']} bytes", path, "build it again"
        )
    if sha256_file(path) != told["engine_sha256"]:
        raise InputError(f"the engine is not the one that {NETWORK_FILE} is about", path, "build it again")
    return EngineFile(
        path,
        told["builder"],
        told["builder_version"],
        tuple(told["compute_capability"]),
        tuple(told["profiles"]),
        told["weights"],
        bool(told["version_compatible"]),
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NETWORK_FILE
    told = read_json(path)
    needed = ("builder", "builder_version", "compute_capability", "profiles", "engine_bytes", "engine_sha256",
              "weights", "version_compatible")  # fmt: skip
    missing = [name for name in needed if not isinstance(told, dict) or name not in told]
    if missing:
        raise InputError(f"it does not tell of an engine: no {missing[0]}", path, "build the engine again")
    return dict(told)


def require_runtime(engine: EngineFile, builder: str, version: str) -> None:
    """Checks an engine against an installed runtime.

    Errors: InputError for an engine of another builder or version, or one without its weights.
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

    Errors: InputError where it was built for others.
    """
    if not runs_on(engine.compute_capability, capability):
        built_for = ", ".join(engine.compute_capability) or "another GPU"
        raise InputError(
            f"the engine is for compute capability {built_for}, and {name} has {capability}", engine.path,
            "build it on this machine",
        )  # fmt: skip
