"""The chain's links that a bundle itself holds, the engine among them, after checking that none is stale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bertmp.core.errors import InputError
from bertmp.core.io import read_json
from bertmp.export.bundle import BUILD_ENGINE, CONVERT, EXPORT, FP32_GRAPH, NETWORK, Bundle
from bertmp.export.consistency.check import Outputs, check_consistency
from bertmp.export.consistency.probe import filled_batch, profile_shapes
from bertmp.export.consistency.tolerance import FP32
from bertmp.export.engine.builders import Toolchain, probe
from bertmp.export.engine.compatibility import open_engine, require_runtime
from bertmp.export.engine.engine_options import Profile, Shape
from bertmp.export.engine.runtime import load_engine, why_not
from bertmp.export.engine.verify import verification_of
from bertmp.export.graph.ort_sessions import arithmetic_note, best_providers, open_session
from bertmp.export.parity.cpu_bf16_stage import CpuBf16Stage
from bertmp.export.parity.emulated_stage import EmulatedStage
from bertmp.export.parity.self_check import check_graph, labels_output
from bertmp.export.parity.stage import Feed, ParityInputs, Skipped, Stage, StageOutput, answer_all
from bertmp.export.parity.torch_stages import AmpStage, TorchStage

ONNX_FP32 = "onnx-fp32"


def low_stage(bundle: Bundle) -> str:
    """The name of the stage of the bundle's low-precision graph: `onnx-fp16` or `onnx-bf16`."""
    return f"onnx-{bundle.low_precision}"


def emulated_stage(bundle: Bundle) -> str:
    """The name of the stage that emulates that graph: `onnx-fp16-emulated` or `onnx-bf16-emulated`."""
    return f"{low_stage(bundle)}-emulated"


def chain(bundle: Bundle, checkpoint: Path | None) -> tuple[Stage, ...]:
    """The checkpoint, also under autocast, both graphs, the low one also in emulation, the engine, CPU BF16.

    Args:
        checkpoint: in place of the folder that the manifest names.

    Raises:
        InputError: the bundle was not exported, or one of its stages is stale.
    """
    export = bundle.stage(EXPORT, "bertmp export")
    for name, command in ((CONVERT, "bertmp export"), (BUILD_ENGINE, "bertmp build-engine")):
        if name in bundle.manifest.stages:
            bundle.stage(name, command)
    recorded = checkpoint or export.settings.get("checkpoint")
    sha256 = export.results.get("checkpoint_sha256") or export.settings.get("checkpoint_sha256") or ""
    folder = Path(str(recorded)) if recorded else None
    low = bundle.lowest_graph if bundle.low_graph else None
    trained = TorchStage(folder, str(sha256), chosen=checkpoint is not None)
    return (
        trained,
        AmpStage(trained, bundle.low_precision),
        OnnxStage(ONNX_FP32, bundle.folder / FP32_GRAPH, half=False),
        OnnxStage(low_stage(bundle), low, half=True),
        EmulatedStage(emulated_stage(bundle), low, bundle.low_precision),
        EngineStage(bundle),
        CpuBf16Stage(bundle.folder / FP32_GRAPH),
    )


@dataclass(frozen=True)
class OnnxStage:
    """One graph, on the GPU where ONNX Runtime can use one, else on the CPU.

    Attributes:
        name: `onnx-fp32`, `onnx-fp16` or `onnx-bf16`.
        graph: the ONNX file; None where the bundle has no such graph.
        half: whether the graph computes in FP16 or BF16, which a CPU does only in part.
    """

    name: str
    graph: Path | None
    half: bool

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples.

        Raises:
            MissingComponent: ONNX Runtime is not installed.
        """
        if self.graph is None:
            return Skipped("the bundle has no low-precision graph")
        try:
            session = open_session(self.graph, providers=best_providers())
        except InputError as error:
            if "NOT_IMPLEMENTED" not in str(error):
                raise error.__cause__ or error from None  # the runtime's own: the stage failed, not the input
            return Skipped("ONNX Runtime has no kernels for the graph's 16-bit type on this machine")

        names = [value.name for value in session.get_outputs()]
        wanted = [name for name in inputs.view.outputs if name in names]

        def answer(feed: Feed) -> Outputs:
            return dict(zip(wanted, session.run(wanted, feed), strict=True))

        answered = answer_all(inputs, answer, advance)
        provider = session.get_providers()[0]
        details: dict[str, object] = {
            "runs on": f"ONNX Runtime, {provider.removesuffix('ExecutionProvider')}"
        }
        note = arithmetic_note(self.name.removeprefix("onnx-"), provider) if self.half else ""
        if note:
            details["arithmetic"] = note
        found = check_graph(inputs, answer, inputs.low_tolerance if self.half else FP32)
        return replace(answered, details=details, consistency=found)


STEP = 8
"""Batches are as long as a multiple of this many tokens: each shape is prepared once, so few are better."""


@dataclass(frozen=True)
class EngineStage:
    """The bundle's engine answers the examples; without a GPU only its verification counts.

    Attributes:
        bundle: the bundle.
    """

    bundle: Bundle
    name: str = "engine"

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples, in their order.

        Raises:
            InputError: the engine is stale, truncated, of another builder's version or GPU, or too small for
                the examples.
            BuildFailed: the runtime refuses it.
        """
        if BUILD_ENGINE not in self.bundle.manifest.stages:
            return Skipped("no engine was built")
        self.bundle.stage(BUILD_ENGINE, f"bertmp build-engine {self.bundle.folder}")
        place = (self.bundle.folder / NETWORK).parent
        file = open_engine(place)
        installed = probe(file.builder)
        if isinstance(installed, Toolchain):  # checked even where there is no GPU to run it
            require_runtime(file, installed.name, installed.version)
        reason = why_not(file.builder)
        if reason:
            return Skipped(reason, verification=self.verification())
        engine = load_engine(place)
        built, profiles = f"{file.builder} {file.builder_version}", list(file.profiles)
        details: dict[str, object] = {"builder": built, "gpu": engine.device.name, "profiles": profiles}
        plan = engine_batches(inputs, engine.profiles)
        chosen = ((rows, fill_batch(inputs, rows, shape)) for rows, shape in plan)
        answered = answer_all(inputs, engine, advance, chosen)
        found = None
        if inputs.probe is not None:
            shapes = profile_shapes(engine.profiles, inputs.probe)
            labels = labels_output(inputs.view)
            found = check_consistency(engine, inputs.probe, shapes, inputs.low_tolerance, labels)
        return replace(answered, details=details, consistency=found)

    def verification(self) -> dict[str, object]:
        """The engine's precision as `network.json` has it: counts, and layers by type."""
        network = read_json(self.bundle.folder / NETWORK)
        found = {**network, **verification_of(network)}
        return {name: found[name] for name in ("builder", "builder_version", "verified", "counts", "summary")}


def engine_batches(inputs: ParityInputs, profiles: Sequence[Profile]) -> Iterator[tuple[list[int], Shape]]:
    """The batches in which an engine is asked; see `plan_batches`.

    A batch that the inputs arrange is asked as it is where it fits into a profile.
    """
    for batch in inputs.arranged or [range(len(inputs.encoded))]:
        lengths = [len(inputs.encoded[row]) for row in batch]
        whole = [one for one in profiles if one.max.batch >= len(batch) and one.max.length >= max(lengths)]
        shortest = sorted(whole, key=lambda one: one.max.length)[:1] if inputs.arranged else []
        for places, shape in plan_batches(lengths, shortest or profiles):
            yield [batch[place] for place in places], shape


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
            what = f"an example of {shortest} tokens is longer than every profile of the engine"
            raise InputError(what, ", ".join(map(str, profiles)), "build it with a longer profile")
        profile = min(fitting, key=lambda one: one.max.length)
        rows = [row for row in order[: profile.max.batch] if lengths[row] <= profile.max.length]
        order = order[len(rows) :]
        rounded = -(-lengths[rows[-1]] // STEP) * STEP
        length = min(max(rounded, profile.min.length), profile.max.length)
        yield rows, Shape(max(len(rows), profile.min.batch), length)


def fill_batch(inputs: ParityInputs, rows: Sequence[int], shape: Shape) -> dict[str, np.ndarray]:
    """The graph's inputs for `rows`, INT64 `[batch, length]`, padded to `shape`."""
    return filled_batch([inputs.encoded[row] for row in rows], inputs.pad_id, shape)
