"""Finding a Python that can run inside the Triton server.

The server starts one process per model and loads that Python's own shared library, so a Python can be used
only if it has one, of the same build. Version managers and distributions differ in that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import MissingComponent
from bertmp.environment.wheels import Wheel

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

VERSIONS = {"numpy": "1.26.4", "onnxruntime": "1.23.2", "tokenizers": "0.23.3"}
"""What the backends import, beside the server."""

HASHES = {
    "numpy": (
        "ffa75af20b44f8dba823498024771d5ac50620e6915abac414251bd971b4529f",  # Python 3.10
        "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5",  # 3.11
        "675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed",  # 3.12
        "2a02aba9ed12e4ac4eb3ea9421c420301a0c6460d9830d74a9df87efa4912010",  # the source
    ),
    "onnxruntime": (
        "4ca88747e708e5c67337b0f65eed4b7d0dd70d22ac332038c9fc4635760018f7",  # Python 3.10
        "da44b99206e77734c5819aa2142c69e64f3b46edc3bd314f6a45a932defc0b3e",  # 3.11
        "0f9b4ae77f8e3c9bee50c27bc1beede83f786fe1d52e99ac85aa8d65a01e9b77",  # 3.12
        "8bace4e0d46480fbeeb7bbe1ffe1f080e6663a42d1086ff95c1551f2d39e7872",  # 3.13
    ),
    "tokenizers": ("376851d22bcf9d650a5c3090bb83e6cf9e895fbf0595369fa4cd43c1f69b5f87",),  # all of them
}
"""SHA-256 of the packages' files; one that is not listed here is refused."""


def requirements() -> str:
    """The pins as a requirements file in pip's hash-checking mode."""
    lines = [
        f"{name}=={version} " + " ".join(f"--hash=sha256:{digest}" for digest in HASHES[name])
        for name, version in VERSIONS.items()
    ]
    return "\n".join(lines) + "\n"


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
    candidates = [chosen] if chosen else _candidates()
    found = [python for candidate in candidates if (python := probe(Path(candidate)))]
    ready = [python for python in found if python.has_numpy]
    if found:
        return (ready or found)[0]
    known = ", ".join(f"{major}.{minor}" for major, minor in _KNOWN)
    raise MissingComponent(
        f"no Python that Triton can load: one of {known} with its shared library (libpython)",
        chosen or "PATH",
        "install one, or name it in BERTMP_TRITON_PYTHON",
    )


def _candidates() -> list[str]:
    ours = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    names = [f"python{major}.{minor}" for major, minor in _KNOWN]
    # A name on the PATH may be a version manager's shim that leads nowhere: each is tried.
    return [ours, *(path for name in names for path in _all_on_path(name))]


def _all_on_path(name: str) -> list[str]:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return [path for folder in folders if (path := shutil.which(name, path=folder))]


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
    for folder in folders:
        if (folder / report["name"]).is_file() and report["name"].endswith(".so.1.0"):
            version = ".".join(str(part) for part in report["version"])
            return HostPython(Path(report["executable"]), version, folder)
    return None
