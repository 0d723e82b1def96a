"""`bertmp setup triton`: a Triton server in an environment of its own, and finding it again.

On the PATH of NVIDIA's container there is a `tritonserver` already, with every backend; it is used as
it is. Elsewhere a wheel brings the server with its Python backend, and serve/backends/ the rest. That
server starts one process per model and loads that Python's own shared library, so a Python can be used only
if it has one, of the same build. Version managers and distributions differ in that.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.markers import Marker
from packaging.version import Version

from bertmp.core.errors import DamagedComponent, InputError, MissingComponent
from bertmp.core.io import JsonSerializable, file_lock, home, read_json, write_json, writing_to
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.environment.options import SetupOptions
from bertmp.environment.perf_analyzer import install_perf_analyzer
from bertmp.environment.wheels import Wheel, fetch, run_pip, run_tool

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
        python_version: of `python`, such as `3.11`; empty where it is not known.
        openvino: the version of its ONNX Runtime with OpenVINO; empty where it has none.
    """

    kind: Literal["bundled", "system"]
    version: str
    executable: Path
    python: Path
    backends: Path
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()
    python_version: str = ""
    openvino: str = ""

    def has_backend(self, name: str) -> bool:
        """Whether the server itself brings the backend `name`."""
        return (self.backends / name).is_dir()


@dataclass(frozen=True)
class SetupResult(JsonSerializable):
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


@keywords_of(SetupOptions)
def setup(options: SetupOptions) -> SetupResult:
    """Installs a Triton server and its load generator under `BERTMP_HOME`; a second call does nothing.

    Raises:
        InputError: an unknown component, or a `BERTMP_HOME` that cannot be written.
        MissingComponent: this platform, Python or network does not allow it.
    """
    if system := _system_runtime():
        versions = {"tritonserver": system.version}
        return SetupResult(options.component, str(system.executable), installed=False, versions=versions)
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{sys.platform} {platform.machine()}"
        raise MissingComponent("Triton is packaged for Linux on x86-64 only", here, "use NVIDIA's container")
    folder, installed = _complete_folder(), False
    if folder is None:
        with file_lock(home() / "triton" / ".lock"):
            folder = _complete_folder()  # another process may have made it while we waited
            if folder is None:
                folder, installed = _build(find_python(), options.progress), True
    versions = dict(read_json(folder / MARKER)["versions"])
    if generator := install_perf_analyzer(_bundled_runtime(folder).libraries[0], options.progress):
        versions["perf_analyzer"] = generator
    return SetupResult(options.component, str(folder), installed, versions)


def find_runtime() -> TritonRuntime:
    """The Triton server of this machine: one on the PATH, else the one that `bertmp setup` made.

    Raises:
        MissingComponent: there is neither.
        DamagedComponent: somebody has installed another numpy into it.
    """
    if system := _system_runtime():
        return system
    if (folder := _complete_folder()) is not None:
        return _bundled_runtime(folder)
    faults = [fault for folder in _environments() if (fault := _fault(folder))]
    what = f"the Triton environment cannot be used: {faults[0]}" if faults else "Triton is not set up"
    error = DamagedComponent if _OTHER_NUMPY in faults[:1] else MissingComponent
    raise error(what, home() / "triton", "run 'bertmp setup triton'")


def _recipe() -> str:
    return hashlib.sha256(f"{SERVER.sha256}\n{requirements()}".encode()).hexdigest()


def _folder_name(python: str) -> str:
    """Another recipe has another folder: the environment that a running server uses stays as it is."""
    return f"{SERVER_VERSION}-python{python}-{_recipe()[:8]}"


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
    names = [path.name for path in _site_packages(folder).glob("numpy-*.dist-info")]
    versions = [Version(name.split("-")[1].removesuffix(".dist")) for name in names]
    if max((version.major for version in versions), default=0) != 1:
        return _OTHER_NUMPY
    return None


_OTHER_NUMPY = "its numpy is not 1.x, which would corrupt the server's tensors"


def _site_packages(folder: Path) -> Path:
    return next(iter(folder.glob("lib/python3.*/site-packages")), folder)


def _build(python: HostPython, progress: ProgressCallback) -> Path:
    """Makes the environment where it will stay: virtual environments do not survive a move."""
    folder = home() / "triton" / _folder_name(python.version)
    wheel = fetch(SERVER, home() / "downloads", progress)
    with writing_to(folder):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            progress(f"Python {python.version} environment")
            run_tool([str(python.executable), "-m", "venv", "--without-pip", str(folder)], _FAILED, folder)
            pins = versions_for(python.version)
            packages = ", ".join(f"{name} {version}" for name, version in pins.items())
            progress(packages if python.has_numpy else f"{packages} (numpy from its source: minutes)")
            with tempfile.TemporaryDirectory() as scratch:
                pinned = Path(scratch) / "requirements.txt"
                pinned.write_text(requirements())
                binaries = ",".join(name for name in pins if name != "numpy")
                from_wheels = (f"--only-binary={binaries}", "--require-hashes")
                _install(folder, *from_wheels, "--requirement", str(pinned))
            progress(f"Triton server {SERVER_VERSION}")
            _install(folder, "--no-index", str(wheel))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        servers = {"tritonserver": SERVER_VERSION, SERVER.package: SERVER.version}
        versions = {**servers, **versions_for(python.version), "python": python.version}
        record = {"recipe": _recipe(), "library": str(python.library), "python": python.version}
        write_json(folder / MARKER, {**record, "versions": versions})
    wheel.unlink(missing_ok=True)  # 50 MB that are not read again
    return folder


def _install(folder: Path, *arguments: str) -> None:
    run_pip("install", *arguments, what=_FAILED, where=folder, python=folder / "bin" / "python")


def _bundled_runtime(folder: Path) -> TritonRuntime:
    packages, marker = _site_packages(folder), read_json(folder / MARKER)
    server = packages / "pytriton" / "tritonserver"
    version, python = marker["versions"]["tritonserver"], folder / "bin" / "python"
    executable, backends = server / "bin" / "tritonserver", server / "backends"
    stub = server / "python_backend_stubs" / marker["python"] / "triton_python_backend_stub"
    libraries = (packages / "nvidia_pytriton.libs", Path(marker["library"]))
    about = (marker["python"], marker["versions"].get(OPENVINO, ""))
    return TritonRuntime("bundled", version, executable, python, backends, stub, libraries, *about)


def _system_runtime() -> TritonRuntime | None:
    found, python = shutil.which("tritonserver"), shutil.which("python3")
    if found is None or python is None:
        return None
    executable = Path(found).resolve()
    folder = executable.parent.parent
    if not (folder / "backends").is_dir():
        return None
    version = folder / "TRITON_VERSION"
    number = version.read_text().strip() if version.is_file() else "unknown"
    return TritonRuntime("system", number, executable, Path(python), folder / "backends")


PYTHONS = ((3, 12), (3, 11), (3, 10))
"""The Pythons that have wheels of everything, best first."""

PYTHON_WITHOUT_NUMPY = (3, 13)
"""The last resort: numpy is built for it."""

SERVER_VERSION = "2.51.0"
"""The Triton server inside the wheel."""

SERVER = Wheel(
    "nvidia-pytriton",
    "0.7.0",
    "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl",
    "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
)

OPENVINO = "onnxruntime-openvino"
"""ONNX Runtime with OpenVINO beside its own CPU provider; it takes the place of `onnxruntime`."""

VERSIONS = {"numpy": "1.26.4", OPENVINO: "1.24.1", "onnxruntime": "1.23.2", "tokenizers": "0.23.3"}
"""What the backends import, beside the server; of the two ONNX Runtimes one, see `MARKERS`."""

MARKERS = {OPENVINO: 'python_version >= "3.11"', "onnxruntime": 'python_version < "3.11"'}
"""Which Pythons get a package, as pip reads it: OpenVINO's has no wheel for Python 3.10."""

HASHES = {
    "numpy": (
        "ffa75af20b44f8dba823498024771d5ac50620e6915abac414251bd971b4529f",  # Python 3.10
        "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5",  # 3.11
        "675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed",  # 3.12
        "2a02aba9ed12e4ac4eb3ea9421c420301a0c6460d9830d74a9df87efa4912010",  # the source
    ),
    OPENVINO: (
        "3007c803634cc69c6d52af1dea7ce729d9bb62b9a11070fd2f959119199007a8",  # Python 3.11
        "d617fac2f59a6ab5ea59a788c3e1592240a129642519aaeaa774761dfe35150e",  # 3.12
        "2c3bb73e68ac27f4891af8a595c1faf574ec68b772e6583c90a0b997a1822782",  # 3.13
    ),
    "onnxruntime": ("4ca88747e708e5c67337b0f65eed4b7d0dd70d22ac332038c9fc4635760018f7",),  # Python 3.10
    "tokenizers": ("376851d22bcf9d650a5c3090bb83e6cf9e895fbf0595369fa4cd43c1f69b5f87",),  # all of them
}
"""SHA-256 of the packages' files; one that is not listed here is refused."""


def requirements() -> str:
    """The pins as a requirements file in pip's hash-checking mode, for every Python."""
    hashes = {name: " ".join(f"--hash=sha256:{digest}" for digest in HASHES[name]) for name in VERSIONS}
    wanted = {name: f"{name}=={version}" for name, version in VERSIONS.items()}
    wanted |= {name: f"{wanted[name]} ; {marker}" for name, marker in MARKERS.items()}
    return "".join(f"{pin} {hashes[name]}\n" for name, pin in wanted.items())


def versions_for(python: str) -> dict[str, str]:
    """The packages that a Python gets, by name.

    Args:
        python: its version, such as `3.11`.
    """
    here = {"python_version": python}
    fits = {name: Marker(marker).evaluate(here) for name, marker in MARKERS.items()}
    return {name: version for name, version in VERSIONS.items() if fits.get(name, True)}


_KNOWN = (*PYTHONS, PYTHON_WITHOUT_NUMPY)

_PROBE = """
import json, sys, sysconfig
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "executable": sys.executable,
    "name": sysconfig.get_config_var("INSTSONAME"),
    "folders": [sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib"],
    "multiarch": sysconfig.get_config_var("MULTIARCH"),
}))
"""


@dataclass(frozen=True)
class HostPython:
    """A Python that the server can load.

    Attributes:
        executable: the interpreter, outside any virtual environment.
        version: e.g. `3.11`.
        library: the folder that holds its shared library.
    """

    executable: Path
    version: str
    library: Path

    @property
    def has_numpy(self) -> bool:
        """Whether the server's numpy comes as a wheel for it."""
        return self.version != ".".join(map(str, PYTHON_WITHOUT_NUMPY))


def find_python() -> HostPython:
    """The Python that bertmp runs on where the server can load it, else another one on the PATH.

    `BERTMP_TRITON_PYTHON` names one explicitly.

    Raises:
        MissingComponent: there is none.
    """
    chosen = os.environ.get("BERTMP_TRITON_PYTHON")
    probed = (probe(Path(candidate)) for candidate in ([chosen] if chosen else _candidates()))
    if found := [python for python in probed if python]:
        return next((python for python in found if python.has_numpy), found[0])
    known = ", ".join(f"{major}.{minor}" for major, minor in _KNOWN)
    what = f"no Python that Triton can load: one of {known} with its shared library (libpython)"
    raise MissingComponent(what, chosen or "PATH", "install one, or name it in BERTMP_TRITON_PYTHON")


def _candidates() -> list[str]:
    ours = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    names = [f"python{major}.{minor}" for major, minor in _KNOWN]
    # A name on the PATH may be a version manager's shim that leads nowhere: each is tried.
    found = (shutil.which(name, path=folder) for name in names for folder in folders)
    return [ours, *filter(None, found)]


def probe(executable: Path) -> HostPython | None:
    """What the interpreter reports about itself; None where the server cannot load it."""
    command = [str(executable), "-I", "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        report = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError):
        return None
    if tuple(report["version"]) not in _KNOWN or not report["name"]:
        return None
    folders = [Path(folder) for folder in report["folders"] if folder]
    folders += [folder / report["multiarch"] for folder in folders if report["multiarch"]]
    holding = [folder for folder in folders if (folder / report["name"]).is_file()]
    if not holding or not report["name"].endswith(".so.1.0"):
        return None
    return HostPython(Path(report["executable"]), ".".join(map(str, report["version"])), holding[0])
