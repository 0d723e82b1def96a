"""Training and its GPU tests import only what a GPU machine without an installation of ours has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NEEDS_EXPORT = "test_engine"  # skips itself where a package of the export is missing
TESTS = sorted({path.stem for path in (ROOT / "tests" / "gpu").glob("*.py")} - {"__init__", NEEDS_EXPORT})

PROGRAM = """
import importlib, json, sys
blocked, modules = map(json.loads, sys.argv[1:])
sys.modules.update(dict.fromkeys(blocked))  # None there makes an import fail
for name in modules:
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (["platformdirs", "tomli_w", "pydantic", "filelock"], ["bertmp.training.train"]),
        # transformers, which the tests use, needs filelock
        (["platformdirs", "tomli_w", "pydantic"], [f"tests.gpu.{name}" for name in TESTS]),
    ],
    ids=["training", "tests"],
)
def test_import_without_optional_packages_succeeds(blocked: list[str], modules: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, json.dumps(blocked), json.dumps(modules)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
