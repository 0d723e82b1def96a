"""`bertmp bench --engine`: how fast an engine is by itself, without a server, on this machine's GPU."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertmp.core.errors import InputError
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, Bundle
from bertmp.export.engine.profiles import Shape
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
class EngineBench:
    """An engine's speed.

    Attributes:
        engine: its file.
        builder: with its version.
        gpu: what it ran on.
        rows: one a shape.
    """

    engine: Path
    builder: str
    gpu: str
    rows: tuple[ShapeSpeed, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "engine": str(self.engine), "rows": [asdict(row) for row in self.rows]}


def bench_engine(bundle: Path, texts: Path | None = None, seconds: float = 10.0) -> EngineBench:
    """Measures a bundle's engine at the shapes that its profiles are tuned for.

    Args:
        bundle: a bundle with an engine.
        texts: a data file; where it is given, only profiles that its texts fall into are measured, each at
            the batch that it is tuned for and the mean length of its texts.
        seconds: of measuring, spread over the shapes.

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
    shapes = [profile.opt for profile in engine.profiles] if texts is None else _shapes(engine, opened, texts)
    rows = tuple(_measure(engine, shape, seconds / len(shapes)) for shape in shapes)
    builder = f"{engine.file.builder} {engine.file.builder_version}"
    return EngineBench(engine.file.path, builder, engine.device.name, rows)


def _shapes(engine: Engine, bundle: Bundle, texts: Path) -> list[Shape]:
    """The profiles that the file's texts fall into, at their tuned batch and the texts' mean length."""
    from bertmp.data.readers import read_examples

    lengths = [len(encoded) for encoded in bundle.tokenizer.encode(read_examples(texts).texts)]
    total: Counter[int] = Counter()
    number: Counter[int] = Counter()
    for length in lengths:
        for index, profile in enumerate(engine.profiles):
            if profile.min.length <= length <= profile.max.length:
                total[index] += length
                number[index] += 1
                break
    if not number:
        raise InputError("no profile of the engine holds these texts", texts, "build it with one that does")
    return [
        Shape(engine.profiles[index].opt.batch, round(total[index] / number[index]))
        for index in sorted(number)
    ]


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
