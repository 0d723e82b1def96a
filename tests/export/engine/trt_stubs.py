"""TensorRT's signatures as stubs for mypy: made from 11.4's bindings, and those that PyPI has for 10.

The engine package is checked as if the module that it chooses at run time were `tensorrt`. Nothing of
NVIDIA's is kept: all of it lies in the test's folder.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.export.engine.trt_bindings import ENGINE, download

STUBGEN = "pybind11-stubgen==3.0.0"
STUBS_10 = "tensorrt-stubs==10.13.0.35.1"

_SETTINGS = """[mypy]
follow_imports = skip
ignore_missing_imports = True
check_untyped_defs = True
disable_error_code = var-annotated
[mypy-bertmp.*,tensorrt.*,tensorrt_bindings.*]
follow_imports = silent
"""


def stubs_of_11(folder: Path, bindings: Path, libraries: Path) -> Path:
    """Makes the stubs of TensorRT 11.4 from its bindings; returns their folder."""
    generator, out = download(STUBGEN, folder), folder / "stubs-11"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{bindings}:{generator}",  # a wheel of Python files can be imported as it is
        "LD_LIBRARY_PATH": str(libraries),
    }
    command = [sys.executable, "-m", "pybind11_stubgen", "tensorrt", "-o", str(out), "--ignore-all-errors"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    _repair(out / "tensorrt.pyi")
    return out


def stubs_of_10(folder: Path) -> Path:
    """Unpacks the stubs of TensorRT 10.13; returns their folder."""
    out = folder / "stubs-10"
    with zipfile.ZipFile(download(STUBS_10, folder)) as archive:
        archive.extractall(out)
    for file in out.rglob("*.pyi"):
        _repair(file)
    return out


def _repair(stub: Path) -> None:
    """Repairs what no Python reads, and adds what a pybind signature cannot: what converts, and iterates."""
    text = stub.read_text(encoding="utf-8")
    text = re.sub(r"\bin: ", "in_: ", text)  # an argument that is called as a keyword
    text = re.sub(r"(\bdef .*=.*\b\w+: [\w.]+)(?=\) ->)", r"\1 = ...", text)  # none after one with a default
    text = re.sub(r": Dims(?=[,)])", ": Dims | collections.abc.Sequence[int]", text)
    text = re.sub(r"(class Dims:\n)", r"\1    def __iter__(self) -> typing.Iterator[int]: ...\n", text)
    if "__buffer__" not in text:
        buffer = "    def __buffer__(self, flags: int, /) -> memoryview: ...\n"
        text = re.sub(r"(class IHostMemory\b.*:\n)", rf"\1{buffer}", text)
    stub.write_text(f"# mypy: ignore-errors\n{text}", encoding="utf-8")


def type_errors(folder: Path, stubs: Path, change: Callable[[str], str] = lambda source: source) -> list[str]:
    """What mypy finds in the engine package against the stubs.

    Args:
        folder: for its cache and the sources as it reads them.
        change: applied to every source before.
    """
    arguments = []
    for path in sorted(ENGINE.glob("*.py")):
        source = change(path.read_text(encoding="utf-8"))
        # The lines keep their numbers.
        source = re.sub(r"\btrt(: Any)? = (self\.)?(tools\.)?module\b", "trt = tensorrt", source)
        source = re.sub(r"\btrt = self\._torch, self\.tools\.module\b", "trt = self._torch, tensorrt", source)
        source = re.sub(r"\b(self\.)?(tools\.)?module\.(?=[A-Z])", "tensorrt.", source)
        start = "from __future__ import annotations"
        (folder / path.name).write_text(source.replace(start, f"{start}; import tensorrt", 1), "utf-8")
        arguments += ["--shadow-file", f"bertmp/export/engine/{path.name}", str(folder / path.name)]
    settings = folder / "mypy.ini"
    settings.write_text(_SETTINGS)
    cache = ["--cache-dir", str(folder / f"cache-{stubs.name}")]
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), *cache, *arguments]
    done = subprocess.run(
        [*command, "-p", "bertmp.export.engine"],
        capture_output=True,
        text=True,
        cwd=ENGINE.parents[1],
        env={**os.environ, "MYPYPATH": str(stubs)},
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-1000:]
    assert lines or "Success" in done.stdout, done.stdout[-2000:]
    return lines


def names_of_stubs(stubs: Path) -> dict[str, Any]:
    """What stubs have, as `names_of` lists a module: its `names`, and those of its `classes`."""
    (file,) = stubs.rglob("tensorrt.pyi")
    classes: dict[str, list[str]] = {}
    names: list[str] = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names += _names_in(node)
        if isinstance(node, ast.ClassDef):
            own = [name for inner in node.body for name in _names_in(inner)]
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            inherited = [name for base in bases for name in classes.get(base, ())]
            classes[node.name] = [*own, *inherited, "__init__"]
    return {"names": names, "classes": classes}


def _names_in(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
