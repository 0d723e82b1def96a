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
from bertmp.environment.triton_pins import PYTHON_WITHOUT_NUMPY, PYTHONS

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
