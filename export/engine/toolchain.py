"""Which TensorRT builders are installed, and everything in which they differ.

TensorRT 10, TensorRT 11 and TensorRT-RTX share one Python API, so the build is one path; what one of them
lacks, or does in its own way, stands here and nowhere else. TensorRT-RTX was run; the TensorRT path is
written to NVIDIA's documented API and was not.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bertmp.errors import InputError, MissingComponent

BUILDERS = ("tensorrt", "tensorrt-rtx")
"""In the order in which `auto` prefers them."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}
_PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Where TensorRT-RTX's default engine runs, as its documentation lists it."""

_LACKS: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {
        "compute_capability": "TensorRT builds for the GPU that it runs on; build where it will serve",
    },
    "tensorrt-rtx": {
        "timing_cache": "TensorRT-RTX times nothing at build time, its timing caches are without effect; "
        "leave --timing-cache out",
    },
}
"""Settings that a builder has not, and why."""


@dataclass(frozen=True)
class Toolchain:
    """One installed builder.

    Attributes:
        name: `tensorrt` or `tensorrt-rtx`.
        version: the version that the module itself reports.
        module: the imported Python module, `trt` in NVIDIA's examples.
    """

    name: str
    version: str
    module: Any = field(repr=False, compare=False)

    def refuse_unsupported(self, settings: Mapping[str, object]) -> None:
        """Checks the settings that were given (not None, not empty) against what this builder has.

        Errors: InputError naming the option and the reason.
        """
        for name, reason in _LACKS[self.name].items():
            if settings.get(name):
                option = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{self.name} has no {option}", f"builder {self.name} {self.version}", reason
                )

    @property
    def network_flags(self) -> int:
        """Flags for `create_network`: strongly typed, which later versions always are."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    @cached_property
    def targets(self) -> Mapping[str, Any]:
        """Compute capabilities that can be targeted, such as `8.9` → `ComputeCapability.SM89`."""
        kinds = getattr(self.module, "ComputeCapability", None)
        names = [name for name in dir(kinds) if name.startswith("SM") and name[2:].isdigit()]
        return {f"{name[2:-1]}.{name[-1]}": getattr(kinds, name) for name in names}

    def set_targets(self, config: Any, wanted: Sequence[str]) -> None:
        """Tells the builder's config which GPUs the engine is for; nothing where `wanted` is empty.

        Errors: InputError for a compute capability that the builder does not know.
        """
        known = sorted(self.targets, key=lambda target: tuple(map(int, target.split("."))))
        for target in wanted:
            if target not in self.targets:
                raise InputError(
                    f"{self.name} {self.version} does not build for compute capability {target}",
                    "--compute-capability", f"choose from {', '.join(known)}",
                )  # fmt: skip
        if wanted:
            config.num_compute_capabilities = len(wanted)
            for index, target in enumerate(wanted):
                config.set_compute_capability(self.targets[target], index)

    def built_for(self, wanted: Sequence[str]) -> list[str]:
        """The compute capabilities on which an engine built with `wanted` runs."""
        if wanted:
            return list(wanted)
        if self.name == "tensorrt-rtx":
            return list(_PORTABLE)
        import torch

        major, minor = torch.cuda.get_device_capability()
        return [f"{major}.{minor}"]


def find_toolchain(builder: str = "auto") -> Toolchain:
    """The builder to use: the one named, or for `auto` TensorRT where it imports, else TensorRT-RTX.

    Errors: InputError for an unknown name; MissingComponent where none is usable, with each one's reason.
    """
    if builder not in ("auto", *BUILDERS):
        raise InputError(f"unknown builder '{builder}'", "--builder", f"use auto, {' or '.join(BUILDERS)}")
    reasons = []
    for name in BUILDERS if builder == "auto" else (builder,):
        found = probe(name)
        if isinstance(found, Toolchain):
            return found
        reasons.append(f"{name}: {found}")
    raise MissingComponent(
        "no engine builder", "; ".join(reasons),
        "on a machine with a GPU install 'bertmp[gpu]' (TensorRT), elsewhere 'bertmp[cpu]' (TensorRT-RTX)",
    )  # fmt: skip


def probe(name: str, load: Callable[[str], Any] = importlib.import_module) -> Toolchain | str:
    """The builder `name`, or the reason why it cannot be used.

    NVIDIA's modules load their libraries when imported, so one that is installed without them, or on a
    machine that lacks what they need, counts as not usable.
    """
    module_name = _MODULES[name]
    if importlib.util.find_spec(module_name) is None:
        return "not installed"
    try:
        module = load(module_name)
        version = str(module.__version__)
        usable = hasattr(module, "Builder") and hasattr(module, "OnnxParser")
    except Exception as error:  # whatever a broken native library raises
        return f"installed, but does not import ({type(error).__name__}: {error})"
    if not usable:
        return "installed, but without its libraries"
    if int(version.split(".")[0]) < _OLDEST[name]:
        return f"version {version} is too old, {_OLDEST[name]} or later is needed"
    return Toolchain(name, version, module)
