"""TensorRT's real Python bindings, imported without its libraries: what names they have.

NVIDIA's bindings are 1 MB and need `libnvinfer` and two more libraries, which are gigabytes and need a GPU.
Libraries of functions that return 0 let them be imported, which is enough to look names up.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

BINDINGS = "tensorrt-cu13-bindings==11.4.0.106"
ENGINE = Path(__file__).parents[3] / "export" / "engine"
_FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
)
_LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")

OBJECTS = {
    "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "parser": "OnnxParser",
    "runtime": "Runtime", "context": "IExecutionContext", "inspector": "EngineInspector",
    "made": "IOptimizationProfile", "cache": "ITimingCache",
}  # fmt: skip
"""Variables of the engine package that hold TensorRT's objects → their classes."""

_ENUM_MEMBER = re.compile(r"[A-Z][A-Z0-9_]+")

_LIST = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
names = {name: dir(getattr(module, name)) for name in dir(module) if isinstance(getattr(module, name), type)}
print(json.dumps({"names": dir(module), "classes": names}))
"""


def names_used() -> set[str]:
    """Every name of TensorRT's that the engine package uses: `Class`, `Enum.MEMBER`, `Class.attribute`."""
    found: set[str] = set()
    for path in sorted(ENGINE.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        tables = {
            target.id: node.value
            for node in module.body
            for target in (node.targets if isinstance(node, ast.Assign) else ())
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute):
                found |= set(_of_module(node)) | set(_of_object(node))
            elif isinstance(node, ast.FunctionDef):
                found |= set(names_by_string(node, tables))
    return found


def _of_module(node: ast.Attribute) -> Iterator[str]:
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute) and inner.attr != "module":
        parts.append(inner.attr)
        inner = inner.value
    is_module = isinstance(inner, ast.Attribute) or (
        isinstance(inner, ast.Name) and inner.id in ("trt", "tensorrt")
    )
    if parts and is_module:
        yield ".".join(reversed(parts[-2:]))


def _of_object(node: ast.Attribute) -> Iterator[str]:
    name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
    if name.lstrip("_") in OBJECTS and node.attr != "get":  # a dictionary's
        yield f"{OBJECTS[name.lstrip('_')]}.{node.attr}"
    elif name.lstrip("_") == "engine" and node.attr.startswith(("get_", "create_", "num_", "device_")):
        yield f"ICudaEngine.{node.attr}"  # other variables of that name are the project's own


def names_by_string(function: ast.FunctionDef, tables: Mapping[str, ast.expr]) -> Iterator[str]:
    """Names that a function gives to `getattr`: as they stand there, or through variables.

    Those of a variable are the capital words in the function and in the file's tables that it names.
    """
    for node in ast.walk(function):
        if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr"):
            continue
        owners = list(_of_module(node.args[0])) if isinstance(node.args[0], ast.Attribute) else []
        words = [node.args[1]]
        if owners and not isinstance(node.args[1], ast.Constant):
            named = {inner.id for inner in ast.walk(function) if isinstance(inner, ast.Name)}
            words = [inner for part in (function, *(tables[name] for name in named & tables.keys()))
                     for inner in ast.walk(part)]  # fmt: skip
        values = [str(word.value) for word in words if isinstance(word, ast.Constant)]
        names = [value for value in values if _ENUM_MEMBER.fullmatch(value)]
        assert names or not owners, f"names of {owners} that no table gives, in {function.name}"
        yield from (f"{owner}.{name}" for owner in owners for name in names)


def names_of(module: str, path: Path | None = None, libraries: Path | None = None) -> dict[str, Any]:
    """What a module of bindings has: its `names`, and those of its `classes`."""
    environment = {"PATH": "/usr/bin:/bin"}
    if path is not None and libraries is not None:
        environment |= {"PYTHONPATH": str(path), "LD_LIBRARY_PATH": str(libraries)}
    command = [sys.executable, "-c", _LIST, module]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    return dict(json.loads(done.stdout))


def download(requirement: str, folder: Path) -> Path:
    """Downloads a wheel; skips where it cannot."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{requirement} cannot be downloaded for this Python")
    (wheel,) = folder.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl")
    return wheel


def unpack_bindings(folder: Path) -> tuple[Path, Path]:
    """Downloads TensorRT 11.4's bindings and makes empty libraries for them; skips where it cannot."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the libraries that TensorRT's bindings need")
    with zipfile.ZipFile(download(BINDINGS, folder)) as archive:
        archive.extractall(folder / "bindings")
    libraries = folder / "libraries"
    libraries.mkdir()
    source = libraries / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for name in _LIBRARIES:
        target = str(libraries / name)
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", target, str(source)], check=True
        )
    return folder / "bindings" / "tensorrt_bindings", libraries
