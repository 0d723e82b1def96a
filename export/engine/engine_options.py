"""The options of `build-engine`, checked as far as that needs no builder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.export.engine.profiles import Profile, parse_profile
from bertmp.export.engine.triton_releases import find_release

LONGEST = 512
"""Where default profiles end for a graph whose positions are not known."""


class EngineOptions(Options):
    """What an engine is built from, for which shapes and GPUs, and by which builder."""

    # fmt: off
    target: Path = argument(kw_only=False, metavar="BUNDLE|GRAPH", help="A bundle, or an FP16 ONNX graph.")
    profiles: Sequence[str] = option(
        default=(), flag="--profile", formerly="profile", metavar="MIN:OPT:MAX",
        help="Shapes to build for, each BATCHxLENGTH; one shape alone is static; default: one profile per "
        "length bucket.",
    )
    max_batch: int = option(default=32, minimum=1, help="The largest batch of the default profiles.")
    builder: Literal["auto", "tensorrt", "tensorrt-rtx"] = option(default="auto", help="Which builder.")
    triton_release: str | None = option(
        default=None, metavar="25.10", formerly="for_triton",
        help="The Triton release that will serve it; a mismatch is refused.",
    )
    compute_capability: Sequence[str] = option(
        default=(), metavar="8.9",
        help="A GPU to build for, several with TensorRT-RTX; default: the builder's own choice.",
    )
    gpu_memory_mib: int | None = option(
        default=None, minimum=1, flag="--gpu-memory", formerly="gpu_memory", metavar="MIB",
        help="Memory of the GPU that will run it; default: this machine's GPU.",
    )
    weights: Literal["full", "refittable", "stripped"] = option(
        default="full", help="Whether the engine's weights can be replaced later, or are left out of it.",
    )
    version_compatible: bool = option(
        default=False, help="Let later versions of the runtime load the engine, too (TensorRT).",
    )
    hardware_compatible: Literal["same-capability", "ampere-plus"] | None = option(
        default=None, help="Let further GPUs run the engine, too (TensorRT).",
    )
    timing_cache: Path | None = option(
        default=None, metavar="FILE",
        help="Kernel timings, read and written; a folder keeps one file per builder version and GPU "
        "(TensorRT); default: a folder under BERTMP_HOME.",
    )
    workspace_mib: int | None = option(
        default=None, minimum=1, flag="--workspace", formerly="workspace", metavar="MIB",
        help="The most scratch memory that a layer may use.",
    )
    optimization_level: int | None = option(
        default=None, minimum=0, maximum=5, help="How hard the builder searches.",
    )
    out: Path | None = option(
        default=None, metavar="DIR", help="Where a bare graph's engine goes; default: GRAPH.engine.",
    )
    # fmt: on
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with the builder's phases."
    )

    def check(self) -> None:
        for capability in self.compute_capability:
            if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", capability):
                what = f"'{capability}' is not a compute capability"
                raise InputError(what, "--compute-capability", "write it as 8.9")
        if self.triton_release is not None:
            find_release(self.triton_release)

    @property
    def capabilities(self) -> list[str]:
        """The compute capabilities to build for, each once."""
        return list(dict.fromkeys(self.compute_capability))

    def chosen_profiles(self, positions: int | None) -> list[Profile]:
        """The optimisation profiles that were asked for.

        Args:
            positions: the model's positions, where they are known.

        Raises:
            InputError: a profile is malformed or beyond the model's positions.
        """
        return [parse_profile(text, positions) for text in self.profiles]
