"""`bertmp doctor`: what this machine has, what is wrong with it, and which commands can run here.

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
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from bertmp.core.errors import MissingComponent
from bertmp.core.hardware import Gpu, Machine, machine, nvidia_driver
from bertmp.core.io import home
from bertmp.environment.downloads import ASSETS, folder_of, is_complete
from bertmp.environment.perf_analyzer import find_perf_analyzer
from bertmp.environment.server_bf16 import why_no_bf16
from bertmp.environment.triton_install import find_python, find_runtime
from bertmp.environment.triton_security import FIXED_RELEASE, vulnerabilities
from bertmp.environment.wheels import require_pip

_TENSOR_CORES = ("fp16_tensor_cores", "bf16_tensor_cores")


@dataclass(frozen=True)
class Diagnosis:
    """What `bertmp doctor` found.

    Attributes:
        machine: processor, memory, system.
        gpus: the NVIDIA GPUs; empty where there are none.
        gpu_problem: why no GPU was found; empty where one was.
        driver_cuda: the newest CUDA that the driver runs; empty without a driver.
        python: the version and the path of this Python.
        components: libraries and servers, usable or not.
        home: where downloads and Triton are kept.
        assets: each asset of `bertmp download` and whether it is there and intact.
        commands: for each command, whether it can run.
    """

    machine: Machine
    gpus: tuple[Gpu, ...]
    gpu_problem: str
    driver_cuda: str
    python: str
    components: tuple[Component, ...]
    home: Path
    assets: dict[str, bool]
    commands: tuple[CommandCheck, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, the attributes' names as keys; GPUs with the types of their tensor cores."""
        return {
            **asdict(self),
            "home": str(self.home),
            "gpus": [
                {**asdict(gpu), **{name: getattr(gpu, name) for name in _TENSOR_CORES}} for gpu in self.gpus
            ],
            "components": [{**asdict(part), "usable": part.usable} for part in self.components],
        }


def doctor() -> Diagnosis:
    """Looks up what this machine has; changes nothing and needs no network."""
    here, driver, found = machine(), nvidia_driver(), components()
    python = f"{platform.python_version()} ({sys.executable})"
    assets = {name: is_complete(asset, folder_of(name)) for name, asset in ASSETS.items()}
    commands = check_commands(found, driver.gpus, here.bf16_cpu)
    gpus = (driver.gpus, driver.problem, driver.cuda)
    return Diagnosis(here, *gpus, python, found, home(), assets, commands)


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
    """A component that is a Python package: what installs it, whose releases carry it, and what to try."""

    name: str
    get: str = "pip install . in the clone"
    distributions: tuple[str, ...] = ()
    trial: str = ""


_PROVIDERS = "import onnxruntime; print(', '.join(onnxruntime.get_available_providers()))"
_TENSORRT = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings")
_CPU, _GPU = "pip install '.[cpu]' in the clone", "pip install '.[gpu]' in the clone"
_PACKAGES = (
    *map(_Package, ("torch", "tokenizers", "safetensors", "pyarrow", "onnx", "onnxscript", "tritonclient")),
    _Package("onnxruntime", _CPU, ("onnxruntime-gpu", "onnxruntime-openvino"), _PROVIDERS),
    _Package("tensorrt", _GPU, _TENSORRT, "import tensorrt"),
    _Package("tensorrt-rtx", _CPU, trial="import tensorrt_rtx"),
    # For `parity --sign`, `verify --trust` and `deploy --trust` alone.
    _Package("model-signing", "pip install '.[sign]' in the clone", trial="import model_signing.signing"),
)


def components() -> tuple[Component, ...]:
    """Every component, usable or not, in a second or two."""
    looked = [(package, _look(package)) for package in _PACKAGES]
    trials = {package: _start(package.trial) for package, one in looked if package.trial and one.usable}
    tried = [_finish(one, trials[package]) if package in trials else one for package, one in looked]
    triton = _triton()
    return (*tried, _pip(), triton, _triton_host(triton))


def _look(package: _Package) -> Component:
    """Reads the installed files, without importing anything."""
    if importlib.util.find_spec(package.name.replace("-", "_")) is None:
        return Component(package.name, problem="not installed", get=package.get)
    version = _version((*package.distributions, package.name))
    return Component(
        package.name, version, "", _torch_build() if package.name == "torch" else "", package.get
    )


def _version(distributions: Sequence[str]) -> str:
    for name in distributions:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown version"


def _torch_build() -> str:
    """Which CUDA torch was built for, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    cuda = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, re.MULTILINE)
    return f"built for CUDA {cuda[1]}" if cuda else "built for the CPU"


def _start(code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, errors="replace")


def _finish(component: Component, trial: subprocess.Popen[str]) -> Component:
    with trial:
        try:
            out, err = trial.communicate(timeout=IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            return replace(component, problem=f"the import did not end within {IMPORT_SECONDS:.0f} s")
        finally:
            trial.kill()  # nothing happens where it has ended
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
    detail = "set up by bertmp" if runtime.kind == "bundled" else str(runtime.executable)
    if runtime.openvino:
        detail += f" with OpenVINO (onnxruntime-openvino {runtime.openvino})"
    if known := vulnerabilities(runtime.version):
        detail += f"; for this machine only: {', '.join(known)} are fixed in {FIXED_RELEASE}"
    return Component("triton", runtime.version, detail=detail)


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


@dataclass(frozen=True)
class Requirement:
    """The components that one command needs.

    Attributes:
        command: its name.
        every: components that must all be usable.
        one_of: components of which one is enough; the first usable one is taken.
    """

    command: str
    every: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()


_MODEL = ("torch", "tokenizers", "safetensors")
_REPOSITORY = ("tokenizers", "tritonclient")
REQUIREMENTS = (
    Requirement("doctor"),
    Requirement("setup", ("pip", "triton host")),
    Requirement("download", ("pip",)),
    Requirement("prepare", ("tokenizers", "pyarrow")),
    Requirement("train", _MODEL),
    Requirement("export", (*_MODEL, "onnx", "onnxscript")),
    Requirement("convert", ("onnx",)),
    Requirement("explain", ("onnx",)),
    Requirement("build-engine", one_of=("tensorrt", "tensorrt-rtx")),
    Requirement("parity", (*_MODEL, "onnxruntime")),
    Requirement("compare", ("onnx", "tokenizers")),
    Requirement("verify", ("tokenizers",)),
    Requirement("predict", ("tokenizers", "onnxruntime")),
    Requirement("deploy", _REPOSITORY),
    Requirement("rollback", _REPOSITORY),
    Requirement("prune", _REPOSITORY),
    Requirement("models", _REPOSITORY),
    Requirement("serve", ("triton", "tritonclient")),
    Requirement("infer", ("tritonclient",)),
    Requirement("bench", ("tritonclient",)),
)


@dataclass(frozen=True)
class CommandCheck:
    """Whether one command can run here.

    Attributes:
        command: its name.
        runs: whether it can.
        why_not: each component that is missing or broken, and why; empty where it can run.
        get: the commands that install what is missing.
        note: how it runs here, where that depends on the machine.
    """

    command: str
    runs: bool
    why_not: tuple[str, ...] = ()
    get: tuple[str, ...] = ()
    note: str = ""


def check_commands(
    found: Sequence[Component], gpus: Sequence[Gpu], bf16_cpu: bool
) -> tuple[CommandCheck, ...]:
    """Checks every command, in the order of the pipeline."""
    by_name = {component.name: component for component in found}
    return tuple(_check(requirement, by_name, gpus, bf16_cpu) for requirement in REQUIREMENTS)


def _check(
    requirement: Requirement, found: dict[str, Component], gpus: Sequence[Gpu], bf16_cpu: bool
) -> CommandCheck:
    command, choices = requirement.command, [found[name] for name in requirement.one_of]
    if not gpus:  # TensorRT builds on a GPU only; TensorRT-RTX without one too
        choices = [
            replace(one, problem="no GPU to build on") if one.usable and one.name == "tensorrt" else one
            for one in choices
        ]
    missing = [found[name] for name in requirement.every if not found[name].usable]
    missing += [] if any(choice.usable for choice in choices) else choices
    if not missing:
        return CommandCheck(command, runs=True, note=_note(command, found, gpus, bf16_cpu))
    reasons = tuple(f"{component.name}: {component.problem}" for component in missing)
    advice = dict.fromkeys(component.get for component in missing if component.get)
    return CommandCheck(command, runs=False, why_not=reasons, get=tuple(advice))


def _note(command: str, found: dict[str, Component], gpus: Sequence[Gpu], bf16_cpu: bool) -> str:
    if command == "train":
        if gpus and "CPU" in found["torch"].detail:
            return "on the CPU although there is a GPU: torch is built for the CPU"
        if gpus:
            return f"on {gpus[0].name}"
        return "on the CPU, BF16 in hardware" if bf16_cpu else "on the CPU, without BF16 hardware"
    if command == "build-engine":
        if found["tensorrt"].usable:
            return "with TensorRT" if gpus else "TensorRT needs a GPU: only TensorRT-RTX builds without one"
        return "with TensorRT-RTX: verifies build and precision; Triton does not load its engines"
    if command == "bench":
        fetched = find_perf_analyzer() is not None
        return "" if fetched else "with Python clients: 'bertmp setup triton' fetches perf_analyzer"
    if gpus:
        return ""
    if command == "serve":
        lacks = why_no_bf16()
        return f"on the CPU, in FP32: {lacks}" if lacks else "on the CPU, in BF16 where parity passed in it"
    return "the engine is not run: no GPU" if command == "parity" else ""
