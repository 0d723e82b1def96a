"""Running an engine on a GPU, as the stage `engine` of parity.

Written to the documented API of TensorRT and TensorRT-RTX (`set_input_shape`, `set_tensor_address`,
`execute_async_v3`), with torch tensors as the buffers. It was not run: that takes an NVIDIA GPU with the
builder's runtime, and without one the stage says so and hands over the precision proof instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertmp.errors import BuildFailed, InputError, MissingComponent
from bertmp.export.accuracy.stages import NotRun, ParityInputs, StageOutput
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, NETWORK, Bundle
from bertmp.export.engine.profiles import Profile, Shape, choose_profile, parse_profile
from bertmp.export.engine.toolchain import Toolchain, find_toolchain
from bertmp.export.manifest import StageRecord
from bertmp.files import read_json

OUTPUT = "logits"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class EngineStage:
    """The bundle's engine answers the texts; without a GPU only its proof counts.

    Attributes:
        folder: the bundle's folder.
    """

    folder: Path

    @property
    def name(self) -> str:
        return "engine"

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | NotRun:
        """Answers all texts, in their order.

        Errors: InputError where the engine is stale, of another builder's version, or too small for the
        texts; BuildFailed where the runtime refuses it.
        """
        manifest = Bundle.open(self.folder).manifest
        if BUILD_ENGINE not in manifest.stages:
            return NotRun("no engine: 'bertmp build-engine' has not run")
        command = f"bertmp build-engine {self.folder}"
        entry = manifest.stage(BUILD_ENGINE, self.folder, command)
        reason = _why_not(entry)
        if reason:
            return NotRun(reason, proof=self.proof())
        tools = find_toolchain(entry.results["builder"])
        _check_version(tools, entry, self.folder / ENGINE, command)
        profiles = [parse_profile(text) for text in entry.results["profiles"]]
        engine = Engine(tools, self.folder / ENGINE, profiles)
        details = {
            "builder": f"{tools.name} {tools.version}",
            "gpu": _gpu_name(),
            "profiles": entry.results["profiles"],
        }
        return StageOutput(_answer(engine, inputs, advance), details=details)

    def proof(self) -> dict[str, object]:
        """What `network.json` proves of the engine: counts of nodes and layers, and types by layer."""
        network = read_json(self.folder / NETWORK)
        parts = {name: network[name] for name in ("builder", "builder_version")}
        return {**parts, **{name: network["proof"][name] for name in ("proven", "counts", "summary")}}


class Engine:
    """A deserialised engine with one execution context, its buffers on the GPU.

    Args:
        profiles: the engine's profiles, in their order.

    Errors: BuildFailed where the runtime refuses the file: truncated, or built for another GPU.
    """

    def __init__(self, tools: Toolchain, path: Path, profiles: Sequence[Profile]) -> None:
        import torch

        trt = tools.module
        self.profiles = profiles
        self._torch = torch
        self._stream = torch.cuda.Stream()
        # The runtime must outlive the engine, and the engine its context.
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context = self._engine and self._engine.create_execution_context()
        if self._context is None:
            raise BuildFailed("the runtime does not load the engine", path, "build it on this machine")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._inputs = [
            name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        ]
        self._profile = -1

    def __call__(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Runs one batch.

        Args:
            batch: the graph's inputs by name, INT64 `[batch, length]`.

        Returns: logits, FP32 `[batch, labels]`.

        Errors: InputError where no profile holds the shape.
        """
        torch, context = self._torch, self._context
        with torch.cuda.stream(self._stream):
            self._select_profile(Shape(*batch[self._inputs[0]].shape))
            held = {name: torch.from_numpy(batch[name]).to("cuda").contiguous() for name in self._inputs}
            for name, tensor in held.items():
                context.set_input_shape(name, tuple(tensor.shape))
                context.set_tensor_address(name, tensor.data_ptr())
            shape = tuple(context.get_tensor_shape(OUTPUT))
            result = torch.empty(shape, dtype=torch.float32, device="cuda")
            context.set_tensor_address(OUTPUT, result.data_ptr())
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise BuildFailed(
                    "the engine did not run", f"shape {shape}", "see the runtime's message above"
                )
            self._stream.synchronize()
            return np.asarray(result.cpu().numpy())

    def _select_profile(self, shape: Shape) -> None:
        index = choose_profile(self.profiles, shape)
        if index is None:
            known = ", ".join(map(str, self.profiles))
            raise InputError(
                f"no profile of the engine holds {shape}", known, "build it with a profile that does"
            )
        if index != self._profile:
            self._context.set_optimization_profile_async(index, self._stream.cuda_stream)
            self._stream.synchronize()
            self._profile = index


def plan_batches(lengths: Sequence[int], profiles: Sequence[Profile]) -> Iterator[tuple[list[int], Shape]]:
    """Groups rows into the batches that the profiles take, short rows with short ones.

    Args:
        lengths: tokens of each row.

    Returns: row indices of each batch and the shape to fill: rows may be fewer than its batch and shorter
    than its length where the profile starts above them.

    Errors: InputError for a row that is longer than every profile.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    while order:
        shortest = lengths[order[0]]
        fitting = [profile for profile in profiles if profile.max.length >= shortest]
        if not fitting:
            known = ", ".join(map(str, profiles))
            raise InputError(
                f"a text of {shortest} tokens is beyond the engine", known, "build it with a longer profile"
            )
        profile = min(fitting, key=lambda one: one.max.length)
        rows = [row for row in order[: profile.max.batch] if lengths[row] <= profile.max.length]
        order = order[len(rows) :]
        length = max(lengths[rows[-1]], profile.min.length)
        yield rows, Shape(max(len(rows), profile.min.batch), length)


def fill_batch(inputs: ParityInputs, rows: Sequence[int], shape: Shape) -> dict[str, np.ndarray]:
    """The graph's inputs for `rows`, INT64 `[batch, length]`, padded to `shape`.

    A row that only fills the batch is masked but for its first token, so that softmax has something to see.
    """
    batch = {name: np.zeros((shape.batch, shape.length), np.int64) for name in INPUTS}
    batch["input_ids"][:] = inputs.pad_id
    batch["attention_mask"][:, 0] = 1
    for place, row in enumerate(rows):
        encoded = inputs.encoded[row]
        batch["input_ids"][place, : len(encoded)] = encoded.input_ids
        batch["token_type_ids"][place, : len(encoded)] = encoded.token_type_ids
        batch["attention_mask"][place, : len(encoded)] = 1
    return batch


def _answer(engine: Engine, inputs: ParityInputs, advance: Callable[[int], None]) -> np.ndarray:
    logits: dict[int, np.ndarray] = {}
    for rows, shape in plan_batches([len(encoded) for encoded in inputs.encoded], engine.profiles):
        answers = engine(fill_batch(inputs, rows, shape))
        logits.update(zip(rows, answers, strict=False))  # rows that only fill the batch come last
        advance(len(rows))
    return np.stack([logits[row] for row in range(len(inputs.encoded))])


def _why_not(entry: StageRecord) -> str:
    """The reason why the engine cannot run here; empty where it can."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    try:
        find_toolchain(entry.results["builder"])
    except MissingComponent as error:
        return f"no runtime of {entry.results['builder']}: {error.where}"
    return ""


def _check_version(tools: Toolchain, entry: StageRecord, path: Path, command: str) -> None:
    built = entry.results["builder_version"]
    if built != tools.version:
        raise InputError(
            f"the engine is of {tools.name} {built}, and {tools.version} is installed",
            path,
            f"run '{command}' again",
        )


def _gpu_name() -> str:
    import torch

    return str(torch.cuda.get_device_name())
