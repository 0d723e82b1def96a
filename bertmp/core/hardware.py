"""The processor, the memory and the system under us."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_TELLING = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "fphp", "asimdhp", "bf16", "sve"),
)
"""The CPU features that decide how fast BERT runs, as the kernel names them (x86, then Arm)."""


@dataclass(frozen=True)
class Machine:
    """What everything runs on.

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


def machine() -> Machine:
    """Looks at this machine."""
    cpu, flags = _processor()
    library, version = platform.libc_ver()
    return Machine(
        cpu=cpu,
        cores=_cores(),
        memory_bytes=_memory(),
        features=tuple(name for name in _TELLING if name in flags),
        system=" ".join(filter(None, (platform.system(), platform.machine(), library, version))),
    )


def _processor() -> tuple[str, frozenset[str]]:
    """The processor's model and its feature flags, as the Linux kernel lists them."""
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
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    for limit in limits:
        try:
            return min(whole, int(limit.read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return whole
