"""What the user chooses about a build, checked as far as that needs no builder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.export.engine.profiles import Profile, parse_profile
from bertmp.export.engine.triton_releases import find_release

LONGEST = 512
"""Where default profiles end for a graph whose positions nothing tells."""

WEIGHTS = ("full", "refittable", "stripped")
HARDWARE = ("same-capability", "ampere-plus")


@dataclass(frozen=True)
class Settings:
    """One build's choices.

    Attributes:
        builder: `auto`, `tensorrt` or `tensorrt-rtx`.
        profiles: the shapes to build for; empty for a profile a length bucket.
        max_batch: the largest batch of the default profiles.
        max_length: the model's positions, the end of the default profiles, in tokens.
        compute_capability: GPUs to build for, e.g. `8.9`; empty for the builder's own choice.
        timing_cache: file of kernel timings that is read, where it exists, and written; a folder holds one
            file a builder version and GPU. None for the folder under `BERTMP_HOME`.
        workspace_mib: the most scratch memory that a layer may use on the GPU, in MiB.
        optimization_level: the builder's own 0 to 5.
        weights: `full`; `refittable`, so that they can be replaced in the engine; or `stripped`, so that
            the engine is without them and gets them on the GPU.
        version_compatible: whether later versions of the runtime should load the engine, too.
        hardware_compatible: `same-capability` or `ampere-plus`, further GPUs that should run the engine.
        gpu_memory_mib: memory of the GPU that will run it, in MiB; None for this machine's GPU.
        for_triton: the Triton release that will serve it, e.g. `25.10`.
    """

    builder: str = "auto"
    profiles: Sequence[Profile] = ()
    max_batch: int = 32
    max_length: int = LONGEST
    compute_capability: Sequence[str] = ()
    timing_cache: str | None = None
    workspace_mib: int | None = None
    optimization_level: int | None = None
    weights: str = "full"
    version_compatible: bool = False
    hardware_compatible: str | None = None
    gpu_memory_mib: int | None = None
    for_triton: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; profiles as the user writes them."""
        return {**asdict(self), "profiles": [str(profile) for profile in self.profiles]}


def read_settings(positions: int | None, profiles: Sequence[str], **options: Any) -> Settings:
    """Checks the options of `build_engine`.

    Args:
        positions: the model's positions, where they are known.
        profiles: `MIN:OPT:MAX` each.
        options: the other fields of Settings; `timing_cache` may be a Path.

    Errors: InputError naming the option.
    """
    _require_positive(options, "max_batch", "--max-batch")
    _require_positive(options, "workspace_mib", "--workspace")
    _require_positive(options, "gpu_memory_mib", "--gpu-memory")
    for target in options.get("compute_capability", ()):
        if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", target):
            raise InputError(
                f"'{target}' is not a compute capability", "--compute-capability", "write it as 8.9"
            )
    level = options.get("optimization_level")
    if level is not None and not 0 <= level <= 5:
        raise InputError(f"no optimisation level {level}", "--optimization-level", "give 0 to 5")
    _require_known(options.get("weights", "full"), WEIGHTS, "--weights")
    if options.get("hardware_compatible") is not None:
        _require_known(options["hardware_compatible"], HARDWARE, "--hardware-compatible")
    if options.get("for_triton") is not None:
        find_release(options["for_triton"])
    cache: Path | None = options.pop("timing_cache", None)
    targets = list(dict.fromkeys(options.pop("compute_capability", ())))
    return Settings(
        profiles=[parse_profile(text, positions) for text in profiles],
        max_length=positions or LONGEST,
        compute_capability=targets,
        timing_cache=str(cache) if cache else None,
        **options,
    )


def _require_positive(options: dict[str, Any], name: str, option: str) -> None:
    value = options.get(name)
    if value is not None and value < 1:
        raise InputError(f"a value of {value}", option, "give at least 1")


def _require_known(value: str, known: Sequence[str], option: str) -> None:
    if value not in known:
        raise InputError(f"unknown value '{value}'", option, f"use {' or '.join(known)}")
