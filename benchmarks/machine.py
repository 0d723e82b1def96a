"""What every results file says of where its figures come from, and how fast the machine multiplies."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bertmp.core.hardware import machine

if TYPE_CHECKING:
    import torch


def provenance(packages: Sequence[str]) -> dict[str, Any]:
    """The machine, the versions of Python and of those packages that are installed, and the date."""
    here = machine()
    return {
        "machine": {
            "processor": here.cpu,
            "cores": here.cores,
            "memory_bytes": here.memory_bytes,
            "features": list(here.features),
            "system": here.system,
        },
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a plain checkout: bertmp itself is not installed
            continue
    return found


def gemm_flops(
    device: torch.device, dtype: torch.dtype, sizes: Sequence[int] = (1024, 2048, 3072), seconds: float = 1.0
) -> float:
    """The best FLOP/s of a square matrix product over some sizes: the peak that shares are taken of.

    Args:
        sizes: edge of the matrices, each tried for at least `seconds`.
    """
    return max(_gemm(device, dtype, size, seconds) for size in sizes)


def _gemm(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    import torch

    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty(size, size, device=device, dtype=dtype)
    wait = synchroniser(device)
    torch.matmul(left, right, out=result)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        wait()
        started = time.perf_counter()
        for _ in range(4):
            torch.matmul(left, right, out=result)
        wait()
        best = min(best, (time.perf_counter() - started) / 4)
    return 2 * size**3 / best


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done all it was given; the CPU always has."""
    import torch

    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def gpu_missing() -> str:
    """Why nothing can run on CUDA here, as one line in the form of every error; empty where it can."""
    import torch

    if torch.cuda.is_available():
        return ""
    if not torch.backends.cuda.is_built():
        return (
            f"error: no GPU (torch {torch.__version__} is built without CUDA): use a machine with CUDA torch"
        )
    return "error: no GPU (torch sees no CUDA device): run this on a machine that has one"


def measure(seconds: float) -> dict[str, float]:
    """The CPU's peak in FLOP/s, by type; run in a process of its own between the measured runs."""
    import torch

    cpu = torch.device("cpu")
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    return {name: gemm_flops(cpu, dtype, seconds=seconds) for name, dtype in types.items()}
