"""Wheels fetched through pip, checked against the SHA-256 pinned here before anything reads them.

pip brings what we would otherwise write ourselves: the user's own indexes, mirrors, proxies and
certificates, its cache, and the resuming of broken transfers. We name packages, never hosts.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bertmp.core.errors import MissingComponent
from bertmp.core.io import sha256_file, writing_to
from bertmp.core.progress import ProgressCallback, null_progress

OLDEST_PIP = (25, 1)
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

    Errors: InputError where `downloads` cannot be written; MissingComponent where pip is absent or too
    old, cannot find or reach the package, or was given other bytes than the pinned ones.
    """
    target = downloads / wheel.filename
    if is_intact(wheel, target):
        return target
    with locked(downloads):
        if is_intact(wheel, target):  # another process fetched it while we waited
            return target
        with tempfile.TemporaryDirectory(prefix=f".{wheel.package}.", dir=downloads) as folder:
            _run_pip(wheel, Path(folder), progress)
            fetched = Path(folder) / wheel.filename
            if not is_intact(wheel, fetched):
                raise MissingComponent(
                    f"pip fetched something else than {wheel.filename}", downloads, "check pip's settings"
                )
            with writing_to(target):
                os.replace(fetched, target)
    return target


def is_intact(wheel: Wheel, path: Path) -> bool:
    """Whether `path` is the wheel, byte for byte."""
    return path.is_file() and sha256_file(path) == wheel.sha256


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds its lock: of two processes that want the same, the second waits.

    Errors: InputError where the folder cannot be made or written.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _run_pip(wheel: Wheel, folder: Path, progress: ProgressCallback) -> None:
    require_pip()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:", "--resume-retries=5"),
        *("--progress-bar=raw", "--dest", str(folder), "--requirement", str(requirements)),
    ]
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                if moved := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                    progress(str(wheel), int(moved[1]), int(moved[2]))
                else:
                    said.append(line.strip())
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise MissingComponent(f"cannot download {wheel}: {_reason(said)}", folder.parent, _advice(said))


def require_pip() -> str:
    """The version of the pip beside this Python.

    Errors: MissingComponent where there is none or it is too old.
    """
    upgrade = f"run '{sys.executable} -m pip install --upgrade pip'"
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        upgrade = f"run '{sys.executable} -m ensurepip --upgrade', then '-m pip install --upgrade pip'"
        raise MissingComponent("pip is not installed", sys.prefix, upgrade) from error
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST_PIP:
        wanted = ".".join(str(part) for part in OLDEST_PIP)
        raise MissingComponent(f"pip {version} is older than {wanted}", sys.prefix, upgrade)
    return version


def _reason(said: list[str]) -> str:
    """Why pip failed, in a clause."""
    if _broken(said):
        return "the package index does not answer"
    if any("DO NOT MATCH THE HASHES" in line for line in said):
        return "the index offers other bytes than the pinned ones"
    if any("(from versions: none)" in line for line in said):
        return "no package index that answers has it"
    errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
    return (errors or said or ["pip said nothing"])[-1].rstrip(".")


def _advice(said: list[str]) -> str:
    if any("DO NOT MATCH THE HASHES" in line for line in said):
        return "check the mirror that pip uses ('pip config list')"
    return "check the network and pip's settings ('pip config list'), then run it again"


def _broken(said: list[str]) -> bool:
    return any("after connection broken by" in line or "Connection aborted" in line for line in said)
