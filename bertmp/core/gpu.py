"""The NVIDIA GPUs that the driver shows, asked directly: no torch, a few milliseconds."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_NAME_BYTES = 256
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use.

    Attributes:
        name: as the driver calls it.
        compute_capability: major and minor number, (9, 0) for Hopper.
        memory_bytes: its whole memory.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    @property
    def fp16_tensor_cores(self) -> bool:
        """Volta (7.0) and later; the GTX 16 series is Turing (7.5) without any."""
        return self.compute_capability >= (7, 0) and "GTX 16" not in self.name

    @property
    def bf16_tensor_cores(self) -> bool:
        """Ampere (8.0) and later."""
        return self.compute_capability >= (8, 0)


def gpus() -> list[Gpu]:
    """The GPUs in the driver's order, `CUDA_VISIBLE_DEVICES` obeyed; empty without driver or GPU.

    It initialises the driver in this process, which a child made by `fork` afterwards cannot use.
    """
    driver = _driver()
    if driver is None:
        return []
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = (_describe(driver, ordinal) for ordinal in range(count.value))
    return [gpu for gpu in found if gpu is not None]


def driver_cuda_version() -> str:
    """The newest CUDA version that the driver runs, such as `13.0`; empty without a driver."""
    driver = _driver()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _describe(driver: ctypes.CDLL, ordinal: int) -> Gpu | None:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    memory = ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    calls = (
        lambda: driver.cuDeviceGet(ctypes.byref(device), ordinal),
        lambda: driver.cuDeviceGetName(name, _NAME_BYTES, device),
        lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)
