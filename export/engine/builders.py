"""Which TensorRT builders are installed, and everything in which they differ.

TensorRT 10, TensorRT 11 and TensorRT-RTX share one Python API, so the build is one path; what one of them
lacks, or does in its own way, stands here and nowhere else. TensorRT-RTX was run, without a GPU; the
TensorRT path is written to NVIDIA's documented API and was not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bertmp.core.errors import InputError, MissingComponent
from bertmp.core.hardware import Gpu
from bertmp.export.engine.engine_options import EngineOptions

if TYPE_CHECKING:
    import tensorrt

BUILDERS = ("tensorrt", "tensorrt-rtx")
"""In the order in which `auto` prefers them."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}
_PORTABLE = ("8.0", "8.6", "8.9", "12.0")
"""Where TensorRT-RTX's default engine runs, as its documentation lists it."""

_LACKS: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {
        "compute_capability": "TensorRT builds for the GPU that it runs on; build where it will serve"
    },
    "tensorrt-rtx": {
        "timing_cache": "TensorRT-RTX times nothing at build time, its timing caches are without effect; "
        "leave --timing-cache out",
        "version_compatible": "TensorRT-RTX comes without the lean runtime that such an engine contains; "
        "build it with the version that runs it",
        "hardware_compatible": "TensorRT-RTX's engines are portable as they are; choose the GPUs with "
        "--compute-capability",
    },
}
"""Settings that a builder has not, and why."""

_NEEDS_GPU = {
    ("tensorrt-rtx", "weights"): "its builder fails on engines whose weights can be changed where it finds "
    "no GPU; leave --weights out, or build on a machine with a GPU"
}
"""Builder and a setting that it has where it finds a GPU alone → why."""

_WITHOUT_EFFECT = {
    ("tensorrt-rtx", "optimization_level"): "TensorRT-RTX takes --optimization-level, and was seen to build "
    "the same engine at every level"
}
"""Builder and a setting that it takes and that changes nothing → how that is known."""

_CUDA_DRIVERS = {"11": "450", "12": "525", "13": "580"}
"""CUDA major → the oldest driver that runs its programs (NVIDIA: CUDA Compatibility, minor versions)."""

_WEIGHT_FLAGS = {"full": (), "refittable": ("REFIT",), "stripped": ("STRIP_PLAN", "REFIT")}
"""What becomes of the weights → builder flags."""

_HARDWARE = {"same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
"""Further GPUs that an engine runs on → TensorRT's levels."""


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

    def refuse_unsupported(self, settings: Mapping[str, object], gpu: bool = True) -> None:
        """Checks the settings that were given (not None, not empty) against what this builder has.

        Args:
            gpu: whether this machine has a GPU.

        Raises:
            InputError: names the option and the reason.
        """
        for name, value in settings.items():
            lacks, needs_gpu = _LACKS[self.name].get(name), _NEEDS_GPU.get((self.name, name))
            if value and value != "full" and (reason := lacks or (None if gpu else needs_gpu)):
                without = "" if lacks else " without a GPU"
                what = f"{self.name} has no --{name.replace('_', '-')}{without}"
                raise InputError(what, f"builder {self.name} {self.version}", reason)

    def without_effect(self, settings: Mapping[str, object]) -> list[str]:
        """Warnings about options that were given and have no effect."""
        given = ((self.name, name) for name, value in settings.items() if value is not None)
        return [_WITHOUT_EFFECT[key] for key in given if key in _WITHOUT_EFFECT]

    def require_driver(self, device: Gpu) -> None:
        """Checks that this machine's driver runs the CUDA that the builder needs to time kernels on it.

        Raises:
            InputError: it does not.
        """
        if self.times_kernels and self.cuda and int(device.cuda.split(".")[0]) < int(self.cuda):
            what = (
                f"{self.name} {self.version} needs CUDA {self.cuda}, and the driver runs CUDA {device.cuda}"
            )
            todo = f"install driver {self.driver} or later, or a builder of CUDA {device.cuda.split('.')[0]}"
            raise InputError(what, f"driver {device.driver or 'of an unknown version'}", todo)

    @property
    def network_flags(self) -> int:
        """Flags for `create_network`: strongly typed, which later versions always are."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    @property
    def times_kernels(self) -> bool:
        """Whether a build measures kernels, so that keeping their timings makes the next one shorter."""
        return "timing_cache" not in _LACKS[self.name]

    @property
    def cuda(self) -> str:
        """The CUDA major that this builder's libraries are of, e.g. `13`; empty where it is not known."""
        for major in sorted(_CUDA_DRIVERS, reverse=True):
            for package in (f"{self.name}-cu{major}", f"{self.name}-cu{major}-libs"):
                with suppress(importlib.metadata.PackageNotFoundError):
                    if importlib.metadata.version(package) == self.version:
                        return major
        return ""

    @property
    def driver(self) -> str:
        """The oldest NVIDIA driver that runs this builder's engines, e.g. `580`; empty where unknown."""
        return _CUDA_DRIVERS.get(self.cuda, "")

    @cached_property
    def targets(self) -> Mapping[str, Any]:
        """Compute capabilities that can be targeted, such as `8.9` → `ComputeCapability.SM89`."""
        kinds = getattr(self.module, "ComputeCapability", None)
        names = [name for name in dir(kinds) if name.startswith("SM") and name[2:].isdigit()]
        return {f"{name[2:-1]}.{name[-1]}": getattr(kinds, name) for name in names}

    def set_targets(self, config: Any, wanted: Sequence[str]) -> None:
        """Tells the builder's config which GPUs the engine is for; nothing where `wanted` is empty.

        Args:
            config: TensorRT-RTX's, which alone has compute capabilities.
            wanted: compute capabilities such as `8.9`.

        Raises:
            InputError: a compute capability that the builder does not know.
        """
        known = sorted(self.targets, key=lambda target: tuple(map(int, target.split("."))))
        for target in wanted:
            if target not in self.targets:
                what = f"{self.name} {self.version} does not build for compute capability {target}"
                raise InputError(what, "--compute-capability", f"choose from {', '.join(known)}")
        if wanted:
            config.num_compute_capabilities = len(wanted)
            for index, target in enumerate(wanted):
                config.set_compute_capability(self.targets[target], index)

    def set_flags(self, config: tensorrt.IBuilderConfig, options: EngineOptions) -> None:
        """Tells the builder's config what becomes of the weights, and which later versions run the engine."""
        version = ("VERSION_COMPATIBLE",) if options.version_compatible else ()
        for name in (*_WEIGHT_FLAGS[options.weights], *version):
            config.set_flag(getattr(self.module.BuilderFlag, name))

    def set_hardware(self, config: tensorrt.IBuilderConfig, compatible: str | None) -> None:
        """Tells the builder's config which other GPUs the engine should run on; nothing where None."""
        if compatible is not None:
            level = _HARDWARE[compatible]
            config.hardware_compatibility_level = getattr(self.module.HardwareCompatibilityLevel, level)

    def built_for(self, options: EngineOptions, device: Gpu | None) -> list[str]:
        """The compute capabilities that run an engine built so; `+` after one includes all later ones."""
        if options.capabilities:
            return options.capabilities
        if self.name == "tensorrt-rtx":
            return list(_PORTABLE)
        if options.hardware_compatible == "ampere-plus":
            return ["8.0+"]
        return [device.compute_capability] if device else []


def find_toolchain(builder: str = "auto") -> Toolchain:
    """The builder to use: the one named, or for `auto` TensorRT where it imports, else TensorRT-RTX.

    Raises:
        InputError: an unknown name.
        MissingComponent: none is usable, with each one's reason.
    """
    if builder not in ("auto", *BUILDERS):
        raise InputError(f"unknown builder '{builder}'", "--builder", f"use auto, {' or '.join(BUILDERS)}")
    reasons = []
    for name in BUILDERS if builder == "auto" else (builder,):
        found = probe(name)
        if isinstance(found, Toolchain):
            return found
        reasons.append(f"{name}: {found}")
    todo = "on a machine with a GPU install 'bertmp[gpu]' (TensorRT), elsewhere 'bertmp[cpu]' (TensorRT-RTX)"
    raise MissingComponent("no engine builder", "; ".join(reasons), todo)


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
