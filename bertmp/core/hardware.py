"""The processor, the memory and the NVIDIA GPUs of this machine: looked up without torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_FEATURES = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "fphp", "asimdhp", "bf16", "sve"),
)
"""The CPU features that decide how fast BERT runs, as Linux names them (x86, then Arm)."""


@dataclass(frozen=True)
class Machine:
    """The machine that this process runs on.

    Attributes:
        cpu: the processor's model.
        cores: the logical processors that this process may use.
        memory_bytes: the memory that it may use: the machine's, or the container's where that is less.
        features: of the features that matter to BERT, those the processor has.
        system: operating system, architecture and C library.
    """

    cpu: str
    cores: int
    memory_bytes: int
    features: tuple[str, ...]
    system: str

    @property
    def bf16_cpu(self) -> bool:
        """Whether the processor multiplies BF16 in hardware."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(self.features))

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.memory_bytes / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        name: as NVIDIA calls it.
        compute_capability: such as `9.0` for Hopper.
        memory_bytes: all of its memory.
        cuda: the newest CUDA version that its driver runs, such as `13.0`.
        driver: the driver's version, such as `580.95.05`.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str = ""
    driver: str = ""

    @property
    def fp16_tensor_cores(self) -> bool:
        """Volta (7.0) and later; the GTX 16 series is Turing (7.5) without any."""
        return float(self.compute_capability) >= 7 and "GTX 16" not in self.name

    @property
    def bf16_tensor_cores(self) -> bool:
        """Ampere (8.0) and later."""
        return float(self.compute_capability) >= 8


@dataclass(frozen=True)
class NvidiaDriver:
    """What the NVIDIA driver of this machine answers.

    Attributes:
        gpus: those that `CUDA_VISIBLE_DEVICES` leaves visible, in its order or else the PCI bus's.
        cuda: the newest CUDA version that the driver runs; empty without a driver.
        problem: why no GPU was found; empty where one was.
    """

    gpus: tuple[Gpu, ...] = ()
    cuda: str = ""
    problem: str = ""


def machine() -> Machine:
    """Looks up this machine's processor, memory and system."""
    cpu, flags = _processor()
    library, version = platform.libc_ver()
    return Machine(
        cpu=cpu,
        cores=_cores(),
        memory_bytes=_memory(),
        features=tuple(name for name in _FEATURES if name in flags),
        system=" ".join(filter(None, (platform.system(), platform.machine(), library, version))),
    )


def _processor() -> tuple[str, frozenset[str]]:
    """The processor's model and its feature flags, as Linux lists them."""
    fields: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, frozenset((fields.get("flags") or fields.get("features") or "").split())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    for limit in limits:
        try:
            return min(total, int(limit.read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return total


def find_gpu() -> Gpu | None:
    """The first GPU that this process may use; None where there is none."""
    return next(iter(nvidia_driver().gpus), None)


def nvidia_driver() -> NvidiaDriver:
    """Asks the driver for its GPUs, through NVML (nvidia-ml-py); never raises."""
    try:
        import pynvml as nvml
    except ImportError:
        return NvidiaDriver(problem="unknown: nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return NvidiaDriver(problem=f"no NVIDIA driver ({error})")
    try:
        version = nvml.nvmlSystemGetCudaDriverVersion()
        cuda = f"{version // 1000}.{version % 1000 // 10}"
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        gpus = tuple(_gpu(nvml, handle, cuda, driver) for handle in _visible(nvml))
        return NvidiaDriver(gpus, cuda, "" if gpus else "the driver shows no GPU")
    except nvml.NVMLError as error:
        return NvidiaDriver(problem=f"the NVIDIA driver fails ({error})")
    finally:
        nvml.nvmlShutdown()


def _visible(nvml: ModuleType) -> Iterator[Any]:
    """NVML's handles of the GPUs that CUDA would show."""
    count = nvml.nvmlDeviceGetCount()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    for entry in map(str, range(count)) if chosen is None else map(str.strip, chosen.split(",")):
        if entry.startswith(("GPU-", "MIG-")):
            yield nvml.nvmlDeviceGetHandleByUUID(entry)
        elif entry.isdecimal() and int(entry) < count:
            yield nvml.nvmlDeviceGetHandleByIndex(int(entry))
        else:  # CUDA, too, ignores what follows an invalid entry
            return


def _gpu(nvml: ModuleType, handle: Any, cuda: str, driver: str) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total
    return Gpu(_text(nvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", memory, cuda, driver)


def _text(value: str | bytes) -> str:
    """Text from NVML: older releases of nvidia-ml-py give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
