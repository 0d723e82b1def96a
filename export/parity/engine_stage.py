"""The engine as a stage of parity: all examples in batches that its profiles take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.io import read_json
from bertmp.data.batches import pad_batch
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, NETWORK, Bundle
from bertmp.export.engine.builders import Toolchain, probe
from bertmp.export.engine.compatibility import open_engine, require_runtime
from bertmp.export.engine.profiles import Profile, Shape
from bertmp.export.engine.runtime import Engine, load_engine, why_not
from bertmp.export.engine.verify import verification_of
from bertmp.export.parity.stage import ParityInputs, Skipped, StageOutput

OUTPUT = "logits"
STEP = 8
"""Batches are as long as a multiple of this many tokens: each shape is prepared once, so few are better."""


@dataclass(frozen=True)
class EngineStage:
    """The bundle's engine answers the examples; without a GPU only its verification counts.

    Attributes:
        bundle: the bundle.
    """

    bundle: Bundle

    @property
    def name(self) -> str:
        return "engine"

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples, in their order.

        Raises:
            InputError: the engine is stale, truncated, of another builder's version or GPU, or too small for
                the examples.
            BuildFailed: the runtime refuses it.
        """
        if BUILD_ENGINE not in self.bundle.manifest.stages:
            return Skipped("no engine: 'bertmp build-engine' has not run")
        self.bundle.stage(BUILD_ENGINE, f"bertmp build-engine {self.bundle.folder}")
        place = (self.bundle.folder / ENGINE).parent
        file = open_engine(place)
        installed = probe(file.builder)
        if isinstance(installed, Toolchain):  # checked even where there is no GPU to run it
            require_runtime(file, installed.name, installed.version)
        reason = why_not(file.builder)
        if reason:
            return Skipped(reason, verification=self.verification())
        engine = load_engine(place)
        details: dict[str, object] = {
            "builder": f"{file.builder} {file.builder_version}",
            "gpu": engine.device.name,
            "profiles": list(file.profiles),
        }
        return StageOutput(_answer(engine, inputs, advance), details=details)

    def verification(self) -> dict[str, object]:
        """The engine's precision as `network.json` has it: counts, and layers by type."""
        network = read_json(self.bundle.folder / NETWORK)
        parts = {name: network[name] for name in ("builder", "builder_version")}
        found = verification_of(network)
        return {**parts, **{name: found[name] for name in ("verified", "counts", "summary")}}


def plan_batches(lengths: Sequence[int], profiles: Sequence[Profile]) -> Iterator[tuple[list[int], Shape]]:
    """Groups rows into the batches that the profiles take, short rows with short ones.

    Args:
        lengths: tokens of each row.

    Returns:
        Row indices of each batch and the shape to fill: rows may be fewer than its batch and shorter than its
        length where the profile starts above them.

    Raises:
        InputError: a row that is longer than every profile.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    while order:
        shortest = lengths[order[0]]
        fitting = [profile for profile in profiles if profile.max.length >= shortest]
        if not fitting:
            known = ", ".join(map(str, profiles))
            raise InputError(
                f"an example of {shortest} tokens is longer than every profile of the engine",
                known,
                "build it with a longer profile",
            )
        profile = min(fitting, key=lambda one: one.max.length)
        rows = [row for row in order[: profile.max.batch] if lengths[row] <= profile.max.length]
        order = order[len(rows) :]
        rounded = -(-lengths[rows[-1]] // STEP) * STEP
        length = min(max(rounded, profile.min.length), profile.max.length)
        yield rows, Shape(max(len(rows), profile.min.batch), length)


def fill_batch(inputs: ParityInputs, rows: Sequence[int], shape: Shape) -> dict[str, np.ndarray]:
    """The graph's inputs for `rows`, INT64 `[batch, length]`, padded to `shape`.

    Rows that only fill the batch have one unmasked token, so that the softmax is defined.
    """
    encoded = [inputs.encoded[row] for row in rows]
    batch = pad_batch(encoded, inputs.pad_id, (shape.batch, shape.length))
    batch["attention_mask"][:, 0] = 1
    return batch


def _answer(engine: Engine, inputs: ParityInputs, advance: Callable[[int], None]) -> np.ndarray:
    logits: dict[int, np.ndarray] = {}
    for rows, shape in plan_batches([len(encoded) for encoded in inputs.encoded], engine.profiles):
        answers = engine(fill_batch(inputs, rows, shape))[OUTPUT]
        logits.update(zip(rows, answers, strict=False))  # rows that only fill the batch come last
        advance(len(rows))
    return np.stack([logits[row] for row in range(len(inputs.encoded))])
