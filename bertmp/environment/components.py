"""The libraries and servers that the commands need: which are here, which version, what is wrong.

Native libraries are imported in child processes: one that crashes or hangs on import takes nothing
down, and several are tried at once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bertmp.core.errors import MissingComponent
from bertmp.environment.triton_install import find_runtime
from bertmp.environment.triton_python import find_python
from bertmp.environment.wheels import require_pip

IMPORT_SECONDS = 60.0


@dataclass(frozen=True)
class Component:
    """A library or server that commands need and that may be missing.

    Attributes:
        name: its name in the table.
        version: its version; empty where it is not installed.
        problem: why it cannot be used; empty where it can.
        detail: more about it, such as ONNX Runtime's providers.
        get: the command that installs it.
    """

    name: str
    version: str = ""
    problem: str = ""
    detail: str = ""
    get: str = ""

    @property
    def usable(self) -> bool:
        return not self.problem


@dataclass(frozen=True)
class _Package:
    """A component that is a Python package: its module, whose releases carry it, and what to try."""

    name: str
    get: str = "pip install . in the clone"
    distributions: tuple[str, ...] = ()
    trial: str = ""

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")


_CPU, _GPU = "pip install '.[cpu]' in the clone", "pip install '.[gpu]' in the clone"
_PACKAGES = (
    *map(_Package, ("torch", "tokenizers", "safetensors", "pyarrow", "onnx", "onnxscript", "tritonclient")),
    _Package(
        "onnxruntime",
        _CPU,
        ("onnxruntime-gpu", "onnxruntime-openvino"),
        "import onnxruntime; print(', '.join(onnxruntime.get_available_providers()))",
    ),
    _Package(
        "tensorrt",
        _GPU,
        ("tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
        "import tensorrt",
    ),
    _Package("tensorrt-rtx", _CPU, trial="import tensorrt_rtx"),
)


def components() -> tuple[Component, ...]:
    """Every component, usable or not, in a second or two."""
    found = [_look(package) for package in _PACKAGES]
    trials = {
        package.name: _start(package.trial)
        for package, component in zip(_PACKAGES, found, strict=True)
        if package.trial and component.usable
    }
    tried = [
        _finish(component, trials[component.name]) if component.name in trials else component
        for component in found
    ]
    triton = _triton()
    return (*tried, _pip(), triton, _triton_host(triton))


def _look(package: _Package) -> Component:
    """Reads the installed files, without importing anything."""
    if importlib.util.find_spec(package.module) is None:
        return Component(package.name, problem="not installed", get=package.get)
    version = _version((*package.distributions, package.name))
    detail = _torch_build() if package.name == "torch" else ""
    return Component(package.name, version, detail=detail, get=package.get)


def _version(distributions: Sequence[str]) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"


def _torch_build() -> str:
    """Which CUDA torch was built for, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    cuda = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, re.MULTILINE)
    return f"built for CUDA {cuda[1]}" if cuda else "built for the CPU"


def _start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def _finish(component: Component, trial: subprocess.Popen[str]) -> Component:
    with trial:
        try:
            out, err = trial.communicate(timeout=IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            trial.kill()
            return replace(component, problem=f"the import did not end within {IMPORT_SECONDS:.0f} s")
        except BaseException:
            trial.kill()
            raise
    if trial.returncode < 0:
        return replace(component, problem=f"the import crashed (signal {-trial.returncode})")
    if trial.returncode > 0:
        return replace(component, problem=(err.strip().splitlines() or ["the import fails"])[-1])
    return replace(component, detail=out.strip())


def _pip() -> Component:
    try:
        return Component("pip", require_pip())
    except MissingComponent as error:
        return Component("pip", problem=error.what, get=error.todo)


def _triton() -> Component:
    try:
        runtime = find_runtime()
    except MissingComponent as error:
        return Component("triton", problem=error.what, get="bertmp setup triton")
    where = "set up by bertmp" if runtime.kind == "bundled" else str(runtime.executable)
    return Component("triton", runtime.version, detail=where)


def _triton_host(triton: Component) -> Component:
    """What `bertmp setup triton` itself needs: its platform, and a Python that the server can load."""
    name, here = "triton host", f"{platform.system()} {platform.machine()}"
    if triton.usable:
        return Component(name, here)
    if here != "Linux x86_64":
        problem = f"Triton is packaged for Linux x86_64 only, and this is {here}"
        return Component(name, problem=problem, get="use NVIDIA's Triton container")
    try:
        return Component(name, f"{here}, Python {find_python().version}")
    except MissingComponent as error:
        return Component(name, problem=error.what, get=error.todo)
