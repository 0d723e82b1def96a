"""The peers' environment: their packages in the versions that they ask for, in front of the project's own.

It sees this Python's packages last, so that torch, which ModelOpt imports, is not fetched a second time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.ab_runs import say
from benchmarks.subprocess_runner import REPOSITORY

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = REPOSITORY / "build" / "bench" / "peers"


class NoEnvironment(Exception):
    """The peers' packages could not be installed; the message is the end of what pip printed."""


def peers_python() -> Path:
    """The Python of the peers' environment, created at the first call.

    Raises:
        NoEnvironment: the packages cannot be installed.
    """
    stamp, python = FOLDER / ".installed", FOLDER / "bin" / "python"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == _key()):
        shutil.rmtree(FOLDER, ignore_errors=True)
        say("installing the peers' packages")
        _run([sys.executable, "-m", "venv", str(FOLDER)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        _run([*pip, "--no-deps", "--requirement", str(REQUIREMENTS)])
        packages = Path(_run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
        (packages / "project.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        stamp.write_text(_key(), encoding="utf-8")
    return python


def _key() -> str:
    """What the environment depends on: made again where one of these changes."""
    parts = (REQUIREMENTS.read_text(encoding="utf-8"), sys.version, sysconfig.get_path("purelib"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _run(command: list[str]) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoEnvironment(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout.strip()
