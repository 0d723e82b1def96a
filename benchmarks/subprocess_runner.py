"""One measured run is one process: its peak memory is its own, and nothing is left warm for the next.

    python -m benchmarks.subprocess_runner MODULE ARGUMENTS.json RESULT.json

calls `MODULE.measure(**ARGUMENTS)` and writes what it returns, with the process's peak memory.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


class ChildFailed(Exception):
    """A measured run ended with an error; the message is the end of what it printed."""


def run_child(
    module: str, arguments: Mapping[str, Any], threads: int, python: Path | str = sys.executable
) -> dict[str, Any]:
    """Runs `module.measure(**arguments)` in a process of its own; its result and `peak_memory_bytes`.

    Args:
        threads: for every library that reads the usual variables; all sides get the same.
        python: of another environment, where a peer lives in one.

    Raises:
        ChildFailed: the process failed; the message is the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="bertmp-measure-") as folder:
        given, result = Path(folder) / "arguments.json", Path(folder) / "result.json"
        given.write_text(json.dumps(dict(arguments)), encoding="utf-8")
        command = [str(python), "-m", "benchmarks.subprocess_runner", module, str(given), str(result)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=_environment(threads), capture_output=True, text=True, check=False
        )
        if done.returncode or not result.is_file():
            raise ChildFailed(f"{module} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return json.loads(result.read_text(encoding="utf-8"))


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the CPU is what is measured here; see benchmarks/gpu.py
    }


def peak_memory() -> int:
    """The most memory this process has had resident, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    module, given, result = sys.argv[1:]
    arguments = json.loads(Path(given).read_text(encoding="utf-8"))
    values = importlib.import_module(module).measure(**arguments)
    Path(result).write_text(json.dumps({**values, "peak_memory_bytes": peak_memory()}), encoding="utf-8")


if __name__ == "__main__":
    main()
