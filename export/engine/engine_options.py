"""The options of `build-engine`, checked as far as that needs no builder, and optimisation profiles.

A profile is a range of shapes that the engine answers, and the shape in it that it is tuned for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.export.engine.compatibility import find_release

if TYPE_CHECKING:
    from bertmp.export.bundle import StageRecord

LONGEST = 512
"""Where default profiles end for a graph whose positions are not known."""


class EngineOptions(Options):
    """What an engine is built from, for which shapes and GPUs, and by which builder."""

    # fmt: off
    target: Path = argument(kw_only=False, metavar="BUNDLE|GRAPH", help="A bundle, or a 16-bit ONNX graph.")
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


BUCKETS = (16, 32, 64, 128, 256)
"""Lengths that end a default profile; the model's positions end the last one."""

TUNED_BATCH = 8
"""The batch that default profiles are tuned for."""

_FORM = "write MIN:OPT:MAX, each BATCHxLENGTH, such as 1x8:8x64:32x256"


class Shape(NamedTuple):
    """The shape of every input.

    Attributes:
        batch: texts in a request.
        length: tokens in a text.
    """

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


class Profile(NamedTuple):
    """One range of shapes: the smallest, the one that the builder tunes for, the largest."""

    min: Shape
    opt: Shape
    max: Shape

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    def holds(self, shape: Shape) -> bool:
        """Whether the engine answers `shape` under this profile."""
        return all(low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True))


def parse_profile(text: str, max_length: int | None = None) -> Profile:
    """Reads `MIN:OPT:MAX`; one shape alone is a static profile.

    Args:
        max_length: the model's positions, where they are known.

    Raises:
        InputError: another form, a zero, shapes out of order or more tokens than positions.
    """
    parts = text.split(":")
    shapes = [_parse_shape(part, text) for part in (parts * 3 if len(parts) == 1 else parts)]
    if len(shapes) != 3:
        raise InputError("not a profile", f"--profile {text}", _FORM)
    for low, high in pairwise(shapes):
        for axis, small, large in zip(Shape._fields, low, high, strict=True):
            if small > large:
                what = f"the profile's {axis} falls from {small} to {large}"
                raise InputError(what, f"--profile {text}", "give MIN ≤ OPT ≤ MAX, in that order")
    if max_length is not None and shapes[2].length > max_length:
        what = f"the profile's length {shapes[2].length} is beyond the model's {max_length} positions"
        raise InputError(what, f"--profile {text}", f"give at most {max_length} tokens")
    return Profile(*shapes)


def recorded_profiles(built: StageRecord) -> tuple[Profile, ...]:
    """The profiles of the engine that `build-engine` recorded in a bundle's manifest, in the engine's order.

    Raises:
        InputError: the record is damaged.
    """
    # Version 0.1 has them among the settings.
    texts = built.results.get("profiles") or built.settings.get("profiles") or ()
    return tuple(parse_profile(str(text)) for text in texts)


def _parse_shape(part: str, text: str) -> Shape:
    match = re.fullmatch(r"\s*([0-9]{1,9})[xX]([0-9]{1,9})\s*", part)
    if match is None:
        raise InputError(f"'{part}' is not a shape", f"--profile {text}", _FORM)
    shape = Shape(int(match[1]), int(match[2]))
    if min(shape) < 1:
        what = f"the shape {part.strip()} is empty"
        raise InputError(what, f"--profile {text}", "give batch and length of at least 1")
    return shape


def default_profiles(max_length: int | None, max_batch: int, fixed: Shape | None = None) -> list[Profile]:
    """A profile a length bucket, batch 1 to `max_batch`; together they hold every length.

    Args:
        max_length: the model's positions; None where they are not known.
        fixed: what the graph itself fixes; a 0 means that the axis is dynamic.
    """
    longest = max_length or LONGEST
    batch, length = fixed or (0, 0)
    batches = (batch,) * 3 if batch else (1, min(TUNED_BATCH, max_batch), max_batch)
    ends = [length] if length else [*(end for end in BUCKETS if end < longest), longest]
    starts = [length] if length else [1, *(end + 1 for end in ends[:-1])]
    return [Profile(*map(Shape, batches, (start, end, end))) for start, end in zip(starts, ends, strict=True)]


def choose_profile(profiles: Sequence[Profile], shape: Shape) -> int | None:
    """The index of the tightest profile that holds `shape`; None where none does."""
    fitting = [index for index, profile in enumerate(profiles) if profile.holds(shape)]
    return min(fitting, key=lambda index: profiles[index].max[::-1], default=None)


def gaps(profiles: Sequence[Profile], around: Sequence[Profile] = ()) -> list[str]:
    """Ranges of shapes between the profiles that none of them holds, e.g. `batch 1-4, length 33-63`.

    Only what lies between the smallest and the largest shape of all profiles, and of `around`, counts.
    """
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    area = [*profiles, *around]
    for batches in _cells(area, "batch"):
        for lengths in _cells(area, "length"):
            if choose_profile(profiles, Shape(batches[0], lengths[0])) is None:
                ranges = found.setdefault(batches, [])
                adjoins = ranges and ranges[-1][1] + 1 == lengths[0]
                ranges.append((ranges.pop()[0] if adjoins else lengths[0], lengths[1]))
    pairs = ((batches, lengths) for batches, ranges in found.items() for lengths in ranges)
    return [f"batch {_range(batches)}, length {_range(lengths)}" for batches, lengths in pairs]


def uncovered(profiles: Sequence[Profile], largest: Shape) -> list[str]:
    """Ranges of shapes up to `largest` that no profile holds, e.g. `batch 5-32, length 257-512`.

    Triton picks for each request a profile that holds its batch and its length, and fails the request where
    none does.
    """
    whole = Profile(Shape(1, 1), Shape(1, 1), largest)
    within = [
        Profile(
            one.min, one.opt, Shape(min(one.max.batch, largest.batch), min(one.max.length, largest.length))
        )
        for one in profiles
        if one.min.batch <= largest.batch and one.min.length <= largest.length
    ]
    return gaps(within, [whole])


def _cells(profiles: Sequence[Profile], axis: str) -> list[tuple[int, int]]:
    """The axis cut at every profile's ends: within a piece, first to last, all shapes fare alike."""
    ends = [(getattr(profile.min, axis), getattr(profile.max, axis) + 1) for profile in profiles]
    cuts = sorted({cut for pair in ends for cut in pair})
    return [(low, high - 1) for low, high in pairwise(cuts)]


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def axes_of(profile: Profile, dims: Sequence[int], name: str) -> tuple[tuple[int, ...], ...]:
    """MIN, OPT and MAX of the graph's input `name` under `profile`.

    Args:
        dims: the input's dimensions in the graph, −1 where dynamic: `[batch, length]`, or `[batch]` for one
            value a text, such as TensorFlow's `unique_ids`.

    Raises:
        InputError: the graph fixes a dimension that the profile asks to be another.
    """
    if len(dims) == 1:
        return tuple((dims[0] if dims[0] != -1 else shape.batch,) for shape in profile)
    if len(dims) != 2:
        what = f"the graph's input '{name}' has {len(dims)} dimensions"
        raise InputError(what, "--profile", "inputs are [batch, length], or [batch] for one value a text")
    for shape in profile:
        if any(dim not in (-1, value) for dim, value in zip(dims, shape, strict=True)):
            what = f"the graph's input '{name}' is fixed at {dims[0]}x{dims[1]}".replace("-1", "any")
            todo = "give a profile of that shape, or export it with dynamic axes"
            raise InputError(what, f"--profile {profile}", todo)
    return tuple(map(tuple, profile))
