"""What is decided before a server starts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bertmp.core.io import write_text
from bertmp.environment.triton_install import TritonRuntime
from bertmp.serve import server_config
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server import TritonServer
from bertmp.serve.server_config import choose_config


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "engines", "name"),
    [
        (True, True, True, ""),
        (False, True, True, "cpu"),
        (True, False, True, "cpu"),
        (True, True, False, "cpu"),
    ],
)
def test_choose_config_needs_gpu_backend_and_engines(
    gpu: bool, tensorrt: bool, engines: bool, name: str
) -> None:
    assert choose_config(gpu, tensorrt, engines).name == name


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "engines", "name"),
    [
        (True, True, True, ""),
        (True, True, False, "gpu-onnx"),
        (True, False, True, "gpu-onnx"),
        (False, True, False, "cpu"),
    ],
)
def test_choose_config_prefers_onnx_runtime_on_the_gpu_to_the_cpu(
    gpu: bool, tensorrt: bool, engines: bool, name: str
) -> None:
    choice = choose_config(gpu, tensorrt, engines, onnx=True)
    assert choice.name == name
    assert ("ONNX Runtime runs the graphs on the GPU" in choice.reason) == (name == "gpu-onnx")


def test_with_free_ports_finds_different_ports() -> None:
    found = server_config.with_free_ports(ServeOptions(Path("r"), http_port=0, grpc_port=0, metrics_port=0))
    assert len({port for port in found.ports.values() if port > 0}) == 3


def test_address_is_reachable_for_clients() -> None:
    assert ServeOptions(Path("r"), host="0.0.0.0").address("grpc", 8001) == "127.0.0.1:8001"
    assert ServeOptions(Path("r"), host="::").address("grpc", 8001) == "[::1]:8001"
    assert ServeOptions(Path("r"), host="10.0.0.1").address("http", 8000) == "10.0.0.1:8000"
    assert ServeOptions(Path("r"), host="10.0.0.1").address("metrics", 8002) == "127.0.0.1:8002"


def test_system_triton_is_launched_with_its_own_backends(tmp_path: Path) -> None:
    """NVIDIA's container has every backend: ours are neither copied nor named."""
    opt = tmp_path / "opt" / "tritonserver"
    runtime = TritonRuntime(
        "system", "2.60.0", opt / "bin" / "tritonserver", Path("python3"), opt / "backends"
    )
    server_config.copy_backends(tmp_path / "launch", runtime)
    assert not (tmp_path / "launch").exists()
    options = ServeOptions(tmp_path)
    write_text(tmp_path / "trec" / "config.pbtxt", 'name: "trec"\n')
    command = server_config.command_line(options, "", runtime, tmp_path / "launch", ["trec"], "shm-")
    assert not [flag for flag in command if flag.startswith("--backend-directory")]
    assert "--load-model=trec" in command
    assert "--http-address=127.0.0.1" in command


def test_server_log_goes_to_progress_without_harmless_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    server = TritonServer(ServeOptions(tmp_path, progress=lines.append))
    server._read(io.StringIO("E0101 cannot load model 'trec'\n\nSignal (15) received.\n"))
    assert lines == ["E0101 cannot load model 'trec'"]
