"""The builder's configuration: settings, profiles, and the timings of earlier builds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.hardware import Gpu
from bertmp.core.io import atomic_file, home
from bertmp.export.engine.builders import Toolchain
from bertmp.export.engine.engine_options import LONGEST, EngineOptions
from bertmp.export.engine.profiles import Profile, Shape, axes_of, default_profiles


def configure(tools: Toolchain, builder: Any, options: EngineOptions) -> Any:
    """A builder config with everything but the profiles and the timing cache.

    Raises:
        InputError: a compute capability that the builder does not know.
    """
    trt = tools.module
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's account names the nodes
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 in the plan means FP32, not its 10-bit shorthand
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    tools.set_flags(config, options)
    tools.set_targets(config, options.capabilities)
    return config


def choose_profiles(network: Any, options: EngineOptions, positions: int | None) -> list[Profile]:
    """The profiles that were asked for, or the default ones for what the graph leaves open."""
    if options.profiles:
        return options.chosen_profiles(positions)
    # What a graph fixes, in any of its inputs; 0 for an axis that is dynamic in all.
    dims = [shape for shape in _input_dims(network).values() if len(shape) == 2]
    batch, length = (max([0, *(shape[axis] for shape in dims)]) for axis in (0, 1))
    return default_profiles(positions or LONGEST, options.max_batch, Shape(batch, length))


def add_profiles(builder: Any, config: Any, network: Any, profiles: list[Profile]) -> None:
    """Gives the config its profiles; none for a graph whose shapes are all fixed and agree.

    Raises:
        InputError: a profile that the graph's own shapes contradict or the builder refuses.
    """
    dims = _input_dims(network)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, shape in dims.items():
            made.set_shape(name, *axes_of(profile, shape, name))
        if any(-1 in shape for shape in dims.values()) and config.add_optimization_profile(made) < 0:
            raise InputError(
                "the builder refuses the profile", f"--profile {profile}", "check MIN, OPT and MAX"
            )


def _input_dims(network: Any) -> dict[str, tuple[int, ...]]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    return {tensor.name: tuple(int(dim) for dim in tensor.shape) for tensor in inputs}


@dataclass(frozen=True)
class TimingCache:
    """Kernel timings that one build leaves to the next of the same builder version on the same GPU.

    Attributes:
        path: the file.
        cache: the builder's object.
    """

    path: Path
    cache: Any

    def save(self) -> None:
        """Writes the timings atomically."""
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(self.cache.serialize())


def open_timing_cache(
    tools: Toolchain, config: Any, chosen: Path | None, device: Gpu | None
) -> TimingCache | None:
    """The cache that the build starts from, new where there is none; None where the builder times nothing.

    Raises:
        InputError: a file that was named holds timings of another builder version or GPU.
    """
    path = timing_cache_path(tools, chosen, device)
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # Timings of another version or GPU are refused: they would choose the wrong kernels.
    if not config.set_timing_cache(cache, False):
        raise InputError(
            "the timing cache is of another builder version or GPU", path,
            "name a folder: it keeps one file for each",
        )  # fmt: skip
    return TimingCache(path, cache)


def timing_cache_path(tools: Toolchain, chosen: Path | None, device: Gpu | None) -> Path | None:
    """Where the timings of this builder version on this GPU are kept; None where it times nothing.

    Args:
        chosen: a file; or a folder that holds one a builder version and GPU; None for `BERTMP_HOME`'s.
    """
    if not tools.times_kernels:
        return None
    if chosen is not None and not chosen.is_dir():
        return chosen
    folder = chosen or home() / "timing-caches"
    gpu = f"{device.name} {device.compute_capability}" if device else "unknown"
    slug = re.sub(r"[^a-z0-9.]+", "-", gpu.lower()).strip("-")
    return folder / f"{tools.name}-{tools.version}-{slug}.cache"
