"""Checks that an engine is the one its `network.json` describes, and that it fits the runtime and the GPU.

The engine's own format is not documented, and a runtime that refuses an engine returns an error number. So
the build writes these facts beside the engine, and they are checked before a runtime opens the file.

A Triton release loads an engine only with the TensorRT version that built it. Which TensorRT each release
ships is a table here, of the container `tritonserver:RELEASE-py3`, the one with the TensorRT backend (the
containers for TensorRT-LLM ship another TensorRT). Its sources:

- server version: the tags of github.com/triton-inference-server/server, `TRITON_VERSION` and `build.py`;
- TensorRT and CUDA: the table "NVIDIA Triton Inference Server Container Versions" of NVIDIA's release notes,
  docs.nvidia.com/deeplearning/triton-inference-server/release-notes (state of July 2026);
- driver: the one that CUDA version comes with, as `docs/introduction/compatibility.md` of the server's
  repository lists it for the release's vLLM container, which shares its CUDA.

A row stands here only where the last two sources name the same CUDA, and no other page of NVIDIA's names
another TensorRT. So 24.12 (two versions of TensorRT are named), 25.07 (not in the table), 25.11 (two
versions of CUDA) and 26.06 (its `build.py` names the base of 26.05, its release notes the CUDA of 26.07) are
missing, and 26.08 and later ones, for which no page was found that names the TensorRT. That of 26.07 is what
`trtexec` in the container says, by github.com/NVIDIA/TensorRT/issues/4853: 11.1.0, of which NVIDIA has
released one build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from packaging.version import Version

from bertmp.core.errors import InputError
from bertmp.core.io import read_json, sha256_file

ENGINE_FILE, NETWORK_FILE = "model.plan", "network.json"
REJECTED_FILE = "model.rejected.plan"
"""An engine that breaks its plan: kept beside its listing for inspection, and never deployed."""


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
    path, recorded = folder / ENGINE_FILE, read_json(folder / NETWORK_FILE)
    needed = (*_RECORDED, "engine_bytes", "engine_sha256")
    missing = [name for name in needed if not isinstance(recorded, dict) or name not in recorded]
    if missing:
        what = f"not the description of an engine: no {missing[0]}"
        raise InputError(what, folder / NETWORK_FILE, "build the engine again")
    if not path.is_file():
        raise InputError("no engine", path, "build it with 'bertmp build-engine'")
    size = path.stat().st_size
    if size < recorded["engine_bytes"]:
        what = f"the engine is truncated: {size} of {recorded['engine_bytes']} bytes"
        raise InputError(what, path, "build it again")
    if sha256_file(path) != recorded["engine_sha256"]:
        raise InputError(f"the engine is not the one that {NETWORK_FILE} is about", path, "build it again")
    lists = {name: tuple(recorded[name]) for name in ("compute_capability", "profiles")}
    return EngineFile(path, **{**{name: recorded[name] for name in _RECORDED}, **lists})


_RECORDED = [field.name for field in fields(EngineFile) if field.name != "path"]


def require_runtime(engine: EngineFile, builder: str, version: str) -> None:
    """Checks an engine against an installed runtime.

    Raises:
        InputError: an engine of another builder or version, or one without its weights.
    """
    if engine.builder != builder:
        what = f"the engine is of {engine.builder}, and {builder} is installed"
        raise InputError(what, engine.path, f"build it with --builder {builder}")
    later = engine.version_compatible and loads_later(engine.builder_version, version)
    if engine.builder_version != version and not later:
        what = f"the engine is of {builder} {engine.builder_version}, and {version} is installed"
        raise InputError(what, engine.path, "build it again")
    if engine.weights == "stripped":
        what = "the engine is without its weights"
        raise InputError(what, engine.path, "build it with --weights full to run it here")


def require_device(engine: EngineFile, name: str, capability: str) -> None:
    """Checks an engine against a GPU.

    Raises:
        InputError: it was built for others.
    """
    if not runs_on(engine.compute_capability, capability):
        built_for = ", ".join(engine.compute_capability) or "another GPU"
        what = f"the engine is for compute capability {built_for}, and {name} has {capability}"
        raise InputError(what, engine.path, "build it on this machine")


def runs_on(built_for: Sequence[str], capability: str) -> bool:
    """Whether an engine for these compute capabilities runs on a GPU of `capability`."""
    gpu = Version(capability)
    pairs = ((Version(target.rstrip("+")), target.endswith("+")) for target in built_for)
    return any(target == gpu or (and_later and target < gpu) for target, and_later in pairs)


SOURCE = (
    "NVIDIA's Triton release notes (container versions) and github.com/triton-inference-server/server "
    "(docs/introduction/compatibility.md, tags)"
)


@dataclass(frozen=True)
class Release:
    """One Triton release.

    Attributes:
        name: the container's version, e.g. `25.10`.
        server: the server's own version, e.g. `2.62.0`.
        tensorrt: the TensorRT in it.
        cuda: the CUDA in it.
        driver: the driver that this CUDA comes with. Older ones of the same CUDA major work through CUDA's
            minor-version compatibility.
    """

    name: str
    server: str
    tensorrt: str
    cuda: str
    driver: str


RELEASES = tuple(
    Release(*row.split())
    for row in (
        "26.07 2.71.0 11.1.0.106 13.3 610.43.02",
        "26.05 2.69.0 10.16.1.11 13.2 595.58.03",
        "26.04 2.68.0 10.16.1.11 13.2 595.58.03",
        "26.03 2.67.0 10.16.0.72 13.2 595.45.04",
        "26.02 2.66.0 10.15.1.29 13.1 590.48.01",
        "26.01 2.65.0 10.14.1.48 13.1 590.48.01",
        "25.12 2.64.0 10.14.1.48 13.1 590.44.01",
        "25.10 2.62.0 10.13.3.9 13.0 580.95.05",
        "25.09 2.61.0 10.13.3.9 13.0 580.82.07",
        "25.08 2.60.0 10.13.2.6 13.0 580.82.07",
        "25.06 2.59.0 10.11.0.33 12.9 575.51.03",
        "25.05 2.58.0 10.10.0.31 12.9 575.51.03",
        "25.04 2.57.0 10.9.0.34 12.9 575.51.02",
        "25.03 2.56.0 10.9.0.34 12.8 570.124.06",
        "25.02 2.55.0 10.8.0.43 12.8 570.86.10",
        "25.01 2.54.0 10.8.0.43 12.8 570.86.10",
        "24.11 2.52.0 10.6.0.26 12.6 560.35.05",
        "24.10 2.51.0 10.5.0.18 12.6 560.35.03",
        "24.09 2.50.0 10.4.0.26 12.6 560.35.03",
        "24.08 2.49.0 10.3.0.26 12.6 560.35.03",
        "24.07 2.48.0 10.2.0.19 12.5 555.42.06",
        "24.06 2.47.0 10.1.0.27 12.5 555.42.02",
        "24.05 2.46.0 10.0.1.6 12.4 550.54.15",
    )
)
"""Newest first."""


def find_release(name: str) -> Release:
    """The release of that name.

    Raises:
        InputError: the table does not have it.
    """
    releases = {release.name: release for release in RELEASES}
    if name not in releases:
        todo = f"it has {', '.join(releases)}"
        raise InputError(f"no Triton release '{name}' in the table", "--triton-release", todo)
    return releases[name]


def release_of_server(version: str) -> Release | None:
    """The release whose server has version `version`, e.g. `2.62.0`; None where the table has none."""
    return next((release for release in RELEASES if release.server == version), None)


def releases_for(builder: str, version: str, version_compatible: bool = False) -> list[str]:
    """The releases that load an engine of this builder, newest first."""
    return [
        release.name for release in RELEASES if not mismatch(release, builder, version, version_compatible)
    ]


def mismatch(release: Release, builder: str, version: str, version_compatible: bool = False) -> str:
    """Why `release` does not load an engine of this builder; empty where it does.

    Args:
        builder: `tensorrt` or `tensorrt-rtx`.
        version: the builder's, e.g. `10.13.3.9`.
        version_compatible: whether the engine was built to run on later versions, too.
    """
    if builder != "tensorrt":
        return f"no Triton release loads engines of {builder}"
    if version == release.tensorrt or (version_compatible and loads_later(version, release.tensorrt)):
        return ""
    return f"Triton {release.name} has TensorRT {release.tensorrt}, and this is {version}"


def require_match(release: Release, builder: str, version: str, version_compatible: bool, where: str) -> None:
    """Raises InputError where `release` does not load an engine of this builder, with what would."""
    reason = mismatch(release, builder, version, version_compatible)
    if not reason:
        return
    major = release.cuda.split(".")[0]
    fitting = releases_for(builder, version, version_compatible)
    instead = f", or serve it with Triton {' or '.join(fitting)}" if fitting else ""
    todo = f"on a machine with a GPU build with 'tensorrt-cu{major}=={release.tensorrt}'{instead}"
    raise InputError(reason, where, todo)


def loads_later(built: str, runtime: str) -> bool:
    """Whether a version-compatible engine of `built` runs on the later TensorRT `runtime`.

    NVIDIA promises it within a major version, and from 10 to 11.
    """
    old, new = Version(built), Version(runtime)
    return new >= old and (new.major == old.major or (old.major, new.major) == (10, 11))
