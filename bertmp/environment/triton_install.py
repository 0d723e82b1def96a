"""`bertmp setup triton`: a Triton server in an environment of its own, and finding it again.

On the PATH of NVIDIA's container there is a `tritonserver` already, with every backend; it is used as
it is. Elsewhere a wheel brings the server with its Python backend, and serve/backends/ the rest.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.io import file_lock, home, read_json, write_json, writing_to
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.environment.options import SetupOptions
from bertmp.environment.triton_python import (
    SERVER,
    SERVER_VERSION,
    VERSIONS,
    HostPython,
    find_python,
    requirements,
)
from bertmp.environment.wheels import fetch, run_pip, run_tool

MARKER = "bertmp-runtime.json"
"""Written last: an environment without it was interrupted, and is made again."""

_FAILED = "cannot install Triton"


@dataclass(frozen=True)
class TritonRuntime:
    """A Triton server that can be launched.

    Attributes:
        kind: `bundled` from `bertmp setup`, or `system` for one found on the PATH.
        version: the server's version, or `unknown`.
        executable: the `tritonserver` binary.
        python: the interpreter that its Python backend runs.
        backends: the folder its backends come from; copied for each launch where `bundled`.
        stub: the Python backend's own process, for this Python; None where the server brings it.
        libraries: the folders it must load shared libraries from.
    """

    kind: Literal["bundled", "system"]
    version: str
    executable: Path
    python: Path
    backends: Path
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()

    def has_backend(self, name: str) -> bool:
        """Whether the server itself brings the backend `name`."""
        return (self.backends / name).is_dir()


@dataclass(frozen=True)
class SetupResult:
    """What `bertmp setup` found or made.

    Attributes:
        component: what was asked for.
        folder: where it lies.
        installed: False where it was there already.
        versions: name → version of its parts.
    """

    component: str
    folder: str
    installed: bool
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@keywords_of(SetupOptions)
def setup(options: SetupOptions) -> SetupResult:
    """Installs a Triton server under `BERTMP_HOME`; a second call finds it and does nothing.

    Raises:
        InputError: an unknown component, or a `BERTMP_HOME` that cannot be written.
        MissingComponent: this platform, Python or network does not allow it.
    """
    if system := _system_runtime():
        versions = {"tritonserver": system.version}
        return SetupResult(options.component, str(system.executable), installed=False, versions=versions)
    _require_platform()
    folder, installed = _complete_folder(), False
    if folder is None:
        with file_lock(home() / "triton" / ".lock"):
            folder = _complete_folder()  # another process may have made it while we waited
            if folder is None:
                folder, installed = _build(find_python(), options.progress), True
    versions = dict(read_json(folder / MARKER)["versions"])
    return SetupResult(options.component, str(folder), installed, versions)


def find_runtime() -> TritonRuntime:
    """The Triton server of this machine: one on the PATH, else the one that `bertmp setup` made.

    Raises:
        MissingComponent: there is neither.
    """
    if system := _system_runtime():
        return system
    if (folder := _complete_folder()) is not None:
        return _bundled_runtime(folder)
    faults = [fault for folder in _environments() if (fault := _fault(folder))]
    what = f"the Triton environment cannot be used: {faults[0]}" if faults else "Triton is not set up"
    raise MissingComponent(what, home() / "triton", "run 'bertmp setup triton'")


def _require_platform() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{sys.platform} {platform.machine()}"
        raise MissingComponent("Triton is packaged for Linux on x86-64 only", here, "use NVIDIA's container")


def _recipe() -> str:
    return hashlib.sha256(f"{SERVER.sha256}\n{requirements()}".encode()).hexdigest()


def _environments() -> list[Path]:
    return sorted((home() / "triton").glob("*-python*"), reverse=True)


def _complete_folder() -> Path | None:
    """The newest environment that was made to the end, by this recipe, and still has its Python."""
    return next((folder for folder in _environments() if _fault(folder) is None), None)


def _fault(folder: Path) -> str | None:
    """Why the environment cannot be used; None where it can."""
    if not (folder / MARKER).is_file():
        return "its set-up was interrupted"
    try:
        marker = read_json(folder / MARKER)
        if marker["recipe"] != _recipe():
            return "made by another version of bertmp"
        library = Path(marker["library"])
    except (InputError, KeyError, TypeError):
        return "damaged record"
    if not (folder / "bin" / "python").exists() or not library.is_dir():
        return "its Python is gone"
    if _numpy_major(folder) != 1:
        return "its numpy is not 1.x, which would corrupt the server's tensors"
    return None


def _numpy_major(folder: Path) -> int:
    names = [path.name for path in _site_packages(folder).glob("numpy-*.dist-info")]
    return max((Version(name.split("-")[1].removesuffix(".dist")).major for name in names), default=0)


def _site_packages(folder: Path) -> Path:
    return next(iter(folder.glob("lib/python3.*/site-packages")), folder)


def _build(python: HostPython, progress: ProgressCallback) -> Path:
    """Makes the environment where it will stay: virtual environments do not survive a move."""
    folder = home() / "triton" / f"{SERVER_VERSION}-python{python.version}"
    wheel = fetch(SERVER, home() / "downloads", progress)
    with writing_to(folder):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            progress(f"Python {python.version} environment")
            run_tool([str(python.executable), "-m", "venv", "--without-pip", str(folder)], _FAILED, folder)
            packages = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
            progress(packages if python.has_numpy else f"{packages} (numpy from its source: minutes)")
            with tempfile.TemporaryDirectory() as scratch:
                pinned = Path(scratch) / "requirements.txt"
                pinned.write_text(requirements())
                binaries = ",".join(name for name in VERSIONS if name != "numpy")
                _install(
                    folder, f"--only-binary={binaries}", "--require-hashes", "--requirement", str(pinned)
                )
            progress(f"Triton server {SERVER_VERSION}")
            _install(folder, "--no-index", str(wheel))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        versions = {
            "tritonserver": SERVER_VERSION,
            SERVER.package: SERVER.version,
            **VERSIONS,
            "python": python.version,
        }
        record = {"recipe": _recipe(), "library": str(python.library), "python": python.version}
        write_json(folder / MARKER, {**record, "versions": versions})
    wheel.unlink(missing_ok=True)  # 50 MB that are not read again
    return folder


def _install(folder: Path, *arguments: str) -> None:
    run_pip("install", *arguments, what=_FAILED, where=folder, python=folder / "bin" / "python")


def _bundled_runtime(folder: Path) -> TritonRuntime:
    packages = _site_packages(folder)
    marker = read_json(folder / MARKER)
    server = packages / "pytriton" / "tritonserver"
    return TritonRuntime(
        kind="bundled",
        version=marker["versions"]["tritonserver"],
        executable=server / "bin" / "tritonserver",
        python=folder / "bin" / "python",
        backends=server / "backends",
        stub=server / "python_backend_stubs" / marker["python"] / "triton_python_backend_stub",
        libraries=(packages / "nvidia_pytriton.libs", Path(marker["library"])),
    )


def _system_runtime() -> TritonRuntime | None:
    found = shutil.which("tritonserver")
    python = shutil.which("python3")
    if found is None or python is None:
        return None
    executable = Path(found).resolve()
    backends = executable.parent.parent / "backends"
    if not backends.is_dir():
        return None
    version = executable.parent.parent / "TRITON_VERSION"
    return TritonRuntime(
        kind="system",
        version=version.read_text().strip() if version.is_file() else "unknown",
        executable=executable,
        python=Path(python),
        backends=backends,
    )
