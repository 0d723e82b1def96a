"""Everything that is decided or laid ready before a Triton process starts."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.environment.triton_install import TritonRuntime
from bertmp.serve import model_config as configs
from bertmp.serve import repository

BACKENDS = Path(__file__).resolve().parent / "backends"
"""The code that runs inside Triton."""

CPU_CONFIG = "cpu"
EXIT_SECONDS = 10
"""How long Triton may finish the requests it has when it is told to end."""


@dataclass(frozen=True)
class ServerSettings:
    """How a server is run.

    Attributes:
        repository: the model repository.
        host: the address it listens on; the loopback interface is reachable from this machine only.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        config_name: which of the models' configurations; empty for `config.pbtxt`, None to choose one
            that this host can run.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    config_name: str | None = None

    def __post_init__(self) -> None:
        ports = self.ports
        for option, port in ports.items():
            if not 0 <= port <= 65535:
                raise InputError(
                    f"{port} is no port", f"--{option}-port", "use 0 to 65535; 0 takes a free one"
                )
        fixed = [port for port in ports.values() if port]
        if len(set(fixed)) != len(fixed):
            raise InputError("the same port twice", ", ".join(map(str, fixed)), "give each its own")

    @property
    def ports(self) -> dict[str, int]:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}

    @property
    def reachable_host(self) -> str:
        """The address under which this machine reaches a server that listens on `host`."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    def address(self, port: int) -> str:
        host = self.reachable_host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_free_ports(settings: ServerSettings) -> ServerSettings:
    """The settings with a free port for every 0.

    Errors: InputError where a port is taken or may not be used, or the host is not this machine's.
    """
    with ExitStack() as held:  # all at once, so that no port is found twice
        http, grpc, metrics = (
            _bind(settings.host, port, name, held) for name, port in settings.ports.items()
        )
    return replace(settings, http_port=http, grpc_port=grpc, metrics_port=metrics)


def _bind(host: str, port: int, name: str, held: ExitStack) -> int:
    todo = f"stop what uses it, or choose another with --{name}-port"
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = held.enter_context(socket.socket(family, kind, number))
        # A port that was closed a moment ago counts as free; one that somebody listens on does not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return int(listener.getsockname()[1])
    except socket.gaierror as error:
        raise InputError(f"unknown host '{host}'", "--host", "use an address of this machine") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is taken", f"{host}:{port}", todo) from error
        if error.errno == errno.EACCES:
            raise InputError(
                f"port {port} may not be used", f"{host}:{port}", "choose one above 1023"
            ) from error
        raise InputError(
            f"cannot listen: {error.strerror}", f"{host}:{port}", "use an address of this machine"
        ) from error


@dataclass(frozen=True)
class ConfigChoice:
    """Which configuration the models are loaded with, and why."""

    name: str
    reason: str


def choose_config(gpu: bool, tensorrt: bool, engines: bool) -> ConfigChoice:
    """The configuration that this host can run.

    Args:
        gpu: whether it has an NVIDIA GPU.
        tensorrt: whether the server has the TensorRT backend.
        engines: whether every encoder's version has its engine.
    """
    if not gpu:
        return ConfigChoice(CPU_CONFIG, "this machine has no NVIDIA GPU")
    if not tensorrt:
        return ConfigChoice(CPU_CONFIG, "this Triton has no TensorRT backend")
    if not engines:
        return ConfigChoice(CPU_CONFIG, "a version has no TensorRT engine")
    return ConfigChoice("", "GPU and TensorRT engines are there")


def choose_config_here(folder: Path, models: list[str], runtime: TritonRuntime) -> ConfigChoice:
    """`choose_config` for this machine and these models."""
    return choose_config(has_nvidia_gpu(), runtime.has_backend("tensorrt"), _have_engines(folder, models))


def require_config(folder: Path, models: list[str], name: str) -> None:
    """Checks that the models have a configuration of this name.

    Errors: InputError where none has; Triton would say that each of them is broken.
    """
    known = {path.stem for model in models for path in (folder / model / "configs").glob("*.pbtxt")}
    if name not in known:
        offered = ", ".join(sorted(known)) or "none"
        raise InputError(f"no model has a configuration '{name}'", "--config-name", f"there is: {offered}")


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver shows a GPU here."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/nvidia0").exists()


def _have_engines(folder: Path, models: list[str]) -> bool:
    for name in models:
        config = configs.parse(folder / name / "config.pbtxt")
        file = config.default_model_filename or "model.plan"
        newest = folder / name / str(repository.numbered(folder / name)[-1])
        if config.platform == "tensorrt_plan" and not (newest / file).is_file():
            return False
    return True


def lay_runtime(folder: Path, runtime: TritonRuntime) -> None:
    """Puts the backends into a folder of this launch.

    They are copied: the Python backend finds its own process beside itself, and a link would lead it to
    the folder of another Python.
    """
    if runtime.kind == "system":
        return
    python = folder / "backends" / "python"
    shutil.copytree(runtime.backends / "python", python)
    if runtime.stub is not None:
        shutil.copy2(runtime.stub, python)
    ours = folder / "backends" / "onnxruntime"
    ours.mkdir()
    shutil.copy2(BACKENDS / "onnxruntime" / "model.py", ours)


def command_line(
    settings: ServerSettings, runtime: TritonRuntime, folder: Path, models: list[str], shm_prefix: str
) -> list[str]:
    """The command that starts the server; `models` are loaded, others on request only."""
    command = [
        str(runtime.executable),
        f"--model-repository={settings.repository.resolve()}",
        f"--http-address={settings.host}",
        f"--http-port={settings.http_port}",
        f"--grpc-address={settings.host}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-address={settings.host}",
        f"--metrics-port={settings.metrics_port}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        "--disable-auto-complete-config",
        # It stays up where a model fails, so that its reason can be asked for; we end it then.
        "--exit-on-error=false",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        "--log-info=false",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    ]
    if settings.config_name:
        command.append(f"--model-config-name={settings.config_name}")
    if not has_nvidia_gpu():
        command += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    if runtime.kind == "bundled":
        command.append(f"--backend-directory={folder / 'backends'}")
    return command


def environment(runtime: TritonRuntime) -> dict[str, str]:
    """The environment of the server: its own Python first, and no trace of ours."""
    ours = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    if runtime.kind == "system":
        return ours
    libraries = [str(path) for path in runtime.libraries]
    if inherited := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(inherited)
    return {
        **ours,
        "PATH": f"{runtime.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        # No __pycache__ in the repository: a version's folder stays as it was written.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
