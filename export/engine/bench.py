"""`bertmp bench --engine`: how fast an engine is by itself on this GPU, and whether it is consistent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.readers import Columns, read_examples
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, Bundle
from bertmp.export.consistency.check import Consistency, check_consistency
from bertmp.export.consistency.probe import probe_of, profile_shapes, random_probe
from bertmp.export.consistency.tolerance import low_tolerance
from bertmp.export.engine.engine_options import Profile, Shape
from bertmp.export.engine.runtime import Engine, load_engine

WARM_UP = 10
"""Runs of a shape before it is measured."""


@dataclass(frozen=True)
class ShapeSpeed:
    """One shape.

    Attributes:
        shape: as BATCHxLENGTH.
        runs: how many were measured.
        texts_per_second, tokens_per_second: batches queued one behind the other, so that the GPU never waits;
            every token of the shape counts.
        p50_ms, p90_ms, p99_ms: a single batch from the host's memory and back to it, nothing else queued.
    """

    shape: str
    runs: int
    texts_per_second: float
    tokens_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class EngineBench(JsonSerializable):
    """An engine's speed, and whether it answers a row alike in every batch.

    Attributes:
        engine: its file.
        builder: with its version.
        gpu: what it ran on.
        rows: one a shape.
        consistency: its answers compared with each other, at the shapes of every profile.
    """

    engine: Path
    builder: str
    gpu: str
    rows: tuple[ShapeSpeed, ...]
    consistency: Consistency


def bench_engine(
    bundle: Path,
    texts: Path | None = None,
    seconds: float = 10.0,
    columns: Columns | None = None,
    progress: ProgressCallback = null_progress,
) -> EngineBench:
    """Measures a bundle's engine at the shapes that its profiles are tuned for, and compares its answers.

    Args:
        bundle: a bundle with an engine.
        texts: a data file; where it is given, only profiles that its texts fall into are measured, each at
            the batch that it is tuned for and the mean length of its texts.
        seconds: of measuring, spread over the shapes.
        columns: how the data file is read.
        progress: told how the file was read, where that is not obvious.

    Raises:
        InputError: a bundle without an engine, a stale or damaged one, or one of another builder, version or
            GPU.
        MissingComponent: there is no GPU, or the builder's runtime is not installed.
    """
    if seconds <= 0:
        raise InputError(f"{seconds:g} s of measuring", "--seconds", "give more than 0")
    opened = Bundle.open(Path(bundle))
    opened.stage(BUILD_ENGINE, f"bertmp build-engine {bundle}")
    engine = load_engine((opened.folder / ENGINE).parent)
    shapes = [profile.opt for profile in engine.profiles]
    if texts is None:
        probe = random_probe(int(opened.config["vocab_size"]), opened.max_positions)
    else:
        examples = read_examples(texts, columns, progress=progress)
        encoded = opened.tokenizer.encode(examples.texts, examples.pairs)
        shapes = _shapes(engine.profiles, [len(one) for one in encoded], examples.source)
        names = [f"line {line}" for line in examples.lines]
        probe = probe_of(encoded, names, opened.tokenizer.pad_id, opened.max_positions)
    found = check_consistency(engine, probe, profile_shapes(engine.profiles, probe), low_tolerance(opened))
    rows = tuple(_measure(engine, shape, seconds / len(shapes)) for shape in shapes)
    builder = f"{engine.file.builder} {engine.file.builder_version}"
    return EngineBench(engine.file.path, builder, engine.device.name, rows, found)


def _shapes(profiles: Sequence[Profile], lengths: Sequence[int], texts: Path) -> list[Shape]:
    """The profiles that texts of these lengths fall into, at their tuned batch and the texts' mean length."""
    found: dict[Profile, list[int]] = {profile: [] for profile in profiles}
    for length in lengths:
        holding = (one for one in profiles if one.min.length <= length <= one.max.length)
        if profile := next(holding, None):
            found[profile].append(length)
    if not any(found.values()):
        raise InputError("no profile of the engine holds these texts", texts, "build it with one that does")
    return [Shape(one.opt.batch, round(sum(held) / len(held))) for one, held in found.items() if held]


def _measure(engine: Engine, shape: Shape, seconds: float) -> ShapeSpeed:
    slot = engine.prepare(shape)
    batch = {name: np.ones((shape.batch, shape.length), np.int64) for name in engine.inputs}
    for _ in range(WARM_UP):
        engine(batch)
    times: list[float] = []
    until = time.perf_counter() + seconds / 2
    while not times or time.perf_counter() < until:
        started = time.perf_counter()
        engine(batch)
        times.append(time.perf_counter() - started)
    runs = max(1, round(seconds / 2 / float(np.median(times))))
    started = time.perf_counter()
    for _ in range(runs):
        engine.launch(slot)
    engine.synchronize()
    rate = runs / (time.perf_counter() - started)
    p50, p90, p99 = (float(value) * 1e3 for value in np.percentile(times, (50, 90, 99)))
    texts = rate * shape.batch
    return ShapeSpeed(str(shape), runs + len(times), texts, texts * shape.length, p50, p90, p99)
