"""Triton's load generator, `perf_analyzer`: fetched beside the server, and found again.

On the PATH of NVIDIA's SDK container there is one already. Elsewhere a wheel of tritonclient brings the
program, and the server's own wheel the two libraries that it wants and systems rarely have.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.io import atomic_folder, file_lock, home
from bertmp.core.progress import ProgressCallback
from bertmp.environment.wheels import Wheel, fetch

WHEEL = Wheel(
    "tritonclient",
    "2.50.0",
    "tritonclient-2.50.0-py3-none-manylinux1_x86_64.whl",
    "421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889",
)
"""The last version whose wheel has the program inside."""

_PROGRAM = "tritonclient-2.50.0.data/data/bin/perf_analyzer"
_LICENSE = "tritonclient-2.50.0.data/data/LICENSE.txt"
_LIBRARIES = {"libb64.so.0d": "libb64-*.so*", "libcudart.so.12": "libcudart-*.so*"}
"""The name that it asks for → the name in the server's wheel."""


@dataclass(frozen=True)
class PerfAnalyzer:
    """A load generator that can be run.

    Attributes:
        executable: the program.
        version: of the Triton client that it belongs to; `unknown` for one on the PATH.
        libraries: the folder it must load shared libraries from; None where the system has them.
    """

    executable: Path
    version: str
    libraries: Path | None = None

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The variables that it is run with."""
        if self.libraries is None:
            return dict(given)
        folders = (str(self.libraries), given.get("LD_LIBRARY_PATH", ""))
        return {**given, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}


def find_perf_analyzer() -> PerfAnalyzer | None:
    """The load generator of this machine: one on the PATH, else the one that `bertmp setup` fetched."""
    if found := shutil.which("perf_analyzer"):
        return PerfAnalyzer(Path(found), "unknown")
    folder = _folder()
    if not (folder / "perf_analyzer").is_file():
        return None
    return PerfAnalyzer(folder / "perf_analyzer", WHEEL.version, folder)


def install_perf_analyzer(libraries: Path, progress: ProgressCallback) -> str:
    """Fetches the load generator unless there is one.

    Args:
        libraries: the folder of the server's own shared libraries.

    Returns:
        Its version; empty where it cannot be had, which `progress` is told: only `bertmp bench` uses it, and
        that can do without.
    """
    if found := find_perf_analyzer():
        return found.version
    try:
        with file_lock(home() / "triton" / ".perf_analyzer.lock"):
            if find_perf_analyzer() is None:  # another process may have fetched it while we waited
                _install(libraries, progress)
    except (MissingComponent, InputError) as error:
        progress(f"perf_analyzer was not fetched, bertmp bench measures with Python clients: {error}")
        return ""
    return WHEEL.version


def _install(libraries: Path, progress: ProgressCallback) -> None:
    sources = {name: _library(libraries, pattern) for name, pattern in _LIBRARIES.items()}
    wheel = fetch(WHEEL, home() / "downloads", progress)
    with atomic_folder(_folder()) as temporary, ZipFile(wheel) as opened:
        for name, target in ((_PROGRAM, "perf_analyzer"), (_LICENSE, "LICENSE.txt")):
            (temporary / target).write_bytes(opened.read(name))
        (temporary / "perf_analyzer").chmod(0o755)
        for name, source in sources.items():
            shutil.copy(source, temporary / name)
    wheel.unlink(missing_ok=True)  # 14 MB that are not read again


def _library(folder: Path, pattern: str) -> Path:
    found = next(iter(folder.glob(pattern)), None)
    if found is None:
        raise MissingComponent(
            f"the server has no {pattern}", folder, "remove the folder and set it up again"
        )
    return found


def _folder() -> Path:
    return home() / "triton" / f"perf_analyzer-{WHEEL.version}"
