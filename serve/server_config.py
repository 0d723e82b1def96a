"""Everything that is decided or prepared before a Triton process starts."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.hardware import find_gpu
from bertmp.core.io import writing_to
from bertmp.environment.triton_install import TritonRuntime
from bertmp.serve.model_config import ENCODER_VERSIONS, GPU_ONNX_FILE, VERSION_COMPATIBLE
from bertmp.serve.model_signature import read_model_config
from bertmp.serve.repository import numbered
from bertmp.serve.serve_options import ServeOptions

BACKENDS = Path(__file__).resolve().parent / "backends"
"""The code that runs inside Triton."""

CPU_CONFIG = "cpu"
GPU_ONNX_CONFIG = Path(GPU_ONNX_FILE).stem


def with_free_ports(options: ServeOptions) -> ServeOptions:
    """The options with a free port of Triton's for every 0.

    Raises:
        InputError: a port is taken or may not be used, or the host is not this machine's.
    """
    with ExitStack() as bound:  # all at once, so that no port is found twice
        http, grpc, metrics = (
            _bind(options.hosts[name], port, name, bound) for name, port in options.ports.items()
        )
    return replace(options, http_port=http, grpc_port=grpc, metrics_port=metrics)


def free_port(host: str, port: int, name: str) -> int:
    """The port, or a free one where it is 0.

    Raises:
        InputError: it is taken or may not be used, or the host is not this machine's.
    """
    with ExitStack() as bound:
        return _bind(host, port, name, bound)


def _bind(host: str, port: int, name: str, bound: ExitStack) -> int:
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = bound.enter_context(socket.socket(family, kind, number))
        # A port that was closed a moment ago counts as free; one that another process listens on does not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return int(listener.getsockname()[1])
    except socket.gaierror as error:
        raise InputError(f"unknown host '{host}'", name, "use an address of this machine") from error
    except OSError as error:
        what, todo = f"cannot listen: {error.strerror}", "use an address of this machine"
        if error.errno == errno.EADDRINUSE:
            what, todo = f"port {port} is taken", f"stop what uses it, or choose another with --{name}-port"
        elif error.errno == errno.EACCES:
            what, todo = f"port {port} may not be used", "choose one above 1023"
        raise InputError(what, f"{host}:{port}", todo) from error


@dataclass(frozen=True)
class ConfigChoice:
    """The configuration that the models are loaded with, and why; the name is empty for `config.pbtxt`."""

    name: str
    reason: str


def choose_config(gpu: bool, tensorrt: bool, engines: bool, onnx: bool = False) -> ConfigChoice:
    """The configuration that this host can run.

    Args:
        gpu: whether it has an NVIDIA GPU.
        tensorrt: whether the server has the TensorRT backend.
        engines: whether every encoder's version has its engine.
        onnx: whether the server's own ONNX Runtime backend can run every encoder's version on the GPU.
    """
    if not gpu:
        return ConfigChoice(CPU_CONFIG, "this machine has no NVIDIA GPU")
    if tensorrt and engines:
        return ConfigChoice("", "the GPU and the TensorRT engines are there")
    lacks = "a version has no TensorRT engine" if tensorrt else "this Triton has no TensorRT backend"
    if onnx:
        return ConfigChoice(GPU_ONNX_CONFIG, f"{lacks}: ONNX Runtime runs the graphs on the GPU")
    return ConfigChoice(CPU_CONFIG, lacks)


def find_config(options: ServeOptions, models: list[str], runtime: TritonRuntime) -> ConfigChoice:
    """The configuration that the options name; for `auto` the one that this machine can run.

    Raises:
        InputError: no model has the named one; Triton would report each of them as broken.
    """
    folders, name = [options.repository / model for model in models], options.model_config_name
    if name == "auto":
        return choose_config(
            find_gpu() is not None,
            runtime.has_backend("tensorrt"),
            all(map(_has_engine_if_needed, folders)),
            # What stands in for that backend elsewhere runs on the CPU.
            runtime.has_backend("onnxruntime") and all(map(_has_gpu_graph_if_needed, folders)),
        )
    known = {path.stem for folder in folders for path in (folder / "configs").glob("*.pbtxt")}
    if name not in ("default", *known):
        offered = ", ".join(sorted(known)) or "none"
        what = f"no model has a configuration '{name}'"
        raise InputError(what, "--model-config-name", f"there is: {offered}")
    return ConfigChoice("" if name == "default" else name, "asked for")


def _has_engine_if_needed(model: Path) -> bool:
    config = read_model_config(model / "config.pbtxt")
    return config.platform != "tensorrt_plan" or _have(model, config.default_model_filename or "model.plan")


def _has_gpu_graph_if_needed(model: Path) -> bool:
    """Whether ONNX Runtime can run, on a GPU, what an engine would."""
    if read_model_config(model / "config.pbtxt").platform != "tensorrt_plan":
        return True
    path = model / GPU_ONNX_FILE
    return path.is_file() and _have(model, read_model_config(path).default_model_filename)


def _have(model: Path, file: str) -> bool:
    """Whether every version that Triton loads at the start has a file."""
    return all((model / str(version) / file).is_file() for version in numbered(model)[-ENCODER_VERSIONS:])


def _is_version_compatible(model: Path) -> bool:
    """Whether the model's engine needs the server's permission to load: such engines hold host code."""
    parameters = read_model_config(model / "config.pbtxt").parameters
    return VERSION_COMPATIBLE in parameters and parameters[VERSION_COMPATIBLE].string_value == "true"


def copy_backends(folder: Path, runtime: TritonRuntime) -> None:
    """Copies the backends into a folder of this launch, unless the server has its own.

    They are copied, not linked: the Python backend starts the stub process that is beside it, and through a
    link it would find the one for another Python.
    """
    if runtime.kind == "system":
        return
    python, ours = folder / "backends" / "python", BACKENDS / "onnxruntime"
    with writing_to(folder):
        shutil.copytree(runtime.backends / "python", python)
        if runtime.stub is not None:
            shutil.copy2(runtime.stub, python)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ours, folder / "backends" / ours.name, ignore=ignore)


def command_line(
    options: ServeOptions,
    config_name: str,
    runtime: TritonRuntime,
    folder: Path,
    models: list[str],
    shm_prefix: str,
    restrictions: Sequence[str] = (),
) -> list[str]:
    """The command that starts the server.

    Args:
        options: with the ports that are used.
        config_name: the models' configuration; empty for `config.pbtxt`.
        runtime: the Triton installation.
        folder: this launch's, with the backends.
        models: loaded at the start; others on request only.
        shm_prefix: begins the names of the shared memory regions.
        restrictions: the arguments that restrict interfaces to the holder of a key.
    """
    command = [
        str(runtime.executable),
        f"--model-repository={options.repository.resolve()}",
        *(f"--{service}-address={options.hosts[service]}" for service in options.ports),
        *(f"--{service}-port={port}" for service, port in options.ports.items()),
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        "--disable-auto-complete-config",
        # It keeps running where a model fails, so that we can ask for the reason; we stop it then.
        "--exit-on-error=false",
        # Else a version that was refused once makes Triton say for ever that it is not ready.
        "--strict-readiness=false",
        "--log-info=false",
        "--metrics-config=summary_latencies=true",
        "--metrics-config=summary_quantiles=0.5:0.05,0.9:0.01,0.99:0.001",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *restrictions,
        *tls_arguments(options),
        *(f"--trace-config={setting}" for setting in options.trace_config),
    ]
    if config_name:
        command.append(f"--model-config-name={config_name}")
    elif any(_is_version_compatible(options.repository / name) for name in models):
        command.append("--backend-config=tensorrt,version-compatible=true")
    if find_gpu() is None:
        command += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    if runtime.kind == "bundled":
        command.append(f"--backend-directory={folder / 'backends'}")
    return command


def tls_arguments(options: ServeOptions) -> list[str]:
    """Triton's arguments for an encrypted gRPC port; none where it is not encrypted."""
    if options.tls_cert is None or options.tls_key is None:
        return []
    files = [
        f"--grpc-server-cert={options.tls_cert.resolve()}",
        f"--grpc-server-key={options.tls_key.resolve()}",
    ]
    if options.tls_ca is None:
        return ["--grpc-use-ssl=true", *files]
    return ["--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={options.tls_ca.resolve()}"]


_PASSED = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "HOME", "LD_PRELOAD")
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "TRITON", "TCMALLOC_", "OMP_", "UCX_", "OPAL_")
"""What Triton, its backends and a GPU's libraries read, in NVIDIA's container too."""


def server_environment(runtime: TritonRuntime, passed: Sequence[str] = ()) -> dict[str, str]:
    """The environment variables of the server and its workers: its own Python first, little of ours.

    What else lies in ours, such as credentials, is not for code that a model brings.

    Args:
        passed: names of more variables that they get.
    """
    ours = os.environ
    kept = {
        name: value
        for name, value in ours.items()
        if name in (*_PASSED, *passed) or name.startswith(_PASSED_PREFIXES)
    }
    path, libraries = ours.get("PATH", os.defpath), ours.get("LD_LIBRARY_PATH", "")
    if runtime.kind == "system":
        return {**kept, "PATH": path, "LD_LIBRARY_PATH": libraries}
    return {
        **kept,
        "PATH": f"{runtime.python.parent}{os.pathsep}{path}",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*map(str, runtime.libraries), libraries])),
        # No __pycache__ in the repository: a version's folder stays as it was written.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
