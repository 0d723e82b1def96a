"""The GPU of this machine, as its driver tells of it: asked through the driver's own library, without torch.

The builder process asks, too, and must stay small; and what a machine without a GPU lacks is not torch.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/version")
_CC_MAJOR, _CC_MINOR = 75, 76
"""`CUdevice_attribute` of the compute capability."""


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: as NVIDIA calls it.
        compute_capability: e.g. `8.9`.
        memory_bytes: all of its memory.
        cuda: the newest CUDA that its driver runs, e.g. `13.0`.
        driver: the driver's version, e.g. `580.95.05`; empty where the system does not say.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str
    driver: str = ""


def find_device() -> Device | None:
    """The first GPU that is visible to CUDA here; None where there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, handle = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    if cuda.cuDeviceGet(ctypes.byref(handle), 0):
        return None
    name, memory, version = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    numbers = []
    for attribute in (_CC_MAJOR, _CC_MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        numbers.append(value.value)
    return Device(
        name=name.value.decode(errors="replace"),
        compute_capability=".".join(map(str, numbers)),
        memory_bytes=memory.value,
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        driver=_driver_version(),
    )


def _driver_version() -> str:
    try:
        match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return match[1] if match else ""
