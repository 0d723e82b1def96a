"""The builder process: parses the graph, verifies its precision, builds the engine, inspects its layers.

Started by `supervisor.run_job` as `python -m bertmp.export.engine.worker DESCRIPTOR`, with the descriptor
of the pipe that takes its messages. Whatever happens in here, the command outlives it.

The network is verified before the build; a fused layer of the engine covers several of its nodes. Where the
nodes of one are all planned in one type, and none of them is a cast, its tensors must be of that type. Where
they are not, the fusion spans a planned change of type, which happens inside it: such layers are listed. The
comparison is written to the documented output of `IEngineInspector`. It was not run: the engine must be
loaded, and that needs a GPU. Without one the build reports that, and only the network is verified.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

from bertmp.core.errors import BertmpError, BuildFailed, InputError
from bertmp.core.hardware import Gpu, find_gpu
from bertmp.core.io import sha256_file, write_json, writing_to
from bertmp.export.engine import preflight, verify
from bertmp.export.engine.builders import Toolchain, find_toolchain
from bertmp.export.engine.compatibility import ENGINE_FILE, NETWORK_FILE, REJECTED_FILE, runs_on
from bertmp.export.engine.supervisor import Job, Messages, error_message
from bertmp.export.precision.plan import CAST_PREFIX, PrecisionPlan

if TYPE_CHECKING:
    import tensorrt

FORMAT = 2
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = ("OutOfMemory", "out of memory", "bad_alloc", "Cannot allocate memory")
"""What the builders' messages have in them when memory ran out."""


def main(descriptor: int) -> None:
    """Does the job on standard input; its last message is `result` or `error`."""
    _die_with_the_command()
    messages = Messages(descriptor, control=0)
    # Unbuffered, so that nothing of the stream is read ahead: its end is the signal to stop.
    with open(0, "rb", buffering=0, closefd=False) as stream:
        line = stream.readline()
    if not line.endswith(b"\n"):
        return  # the command was interrupted before it sent the job
    job = Job.from_line(line)
    try:
        messages.send("result", **build(job, messages))
    except BertmpError as error:
        messages.send("error", **error_message(error))
    except MemoryError:
        messages.send("error", **error_message(_out_of_memory(job, "MemoryError")))
    except Exception as error:
        traceback.print_exc()
        failure = BuildFailed(f"the builder failed with {type(error).__name__}: {error}", job.graph)
        messages.send("error", **error_message(failure))


def build(job: Job, messages: Messages) -> dict[str, Any]:
    """Writes `network.json` and, where the precision is verified, `model.plan` into the job's folder.

    Returns:
        What the command reports of the build; plain JSON values.
    """
    options, device = job.options, find_gpu()
    tools = find_toolchain(options.builder)
    preflight.check_builder(tools, options, device)
    messages.send("toolchain", name=tools.name, version=tools.version)
    logger = _logger(tools, messages)
    builder = tools.module.Builder(logger)
    config = preflight.configure(tools, builder, options)
    network, parser = _parse(tools, builder, logger, job)
    profiles = preflight.choose_profiles(network, options, job.positions)
    preflight.add_profiles(builder, config, network, profiles)
    layers = verify.read_network(network)
    preflight.check_targets(layers, job)
    verification = _verify(job, layers)
    memory = preflight.check_memory(job, profiles, tools, device)
    facts = preflight.describe(tools, job, device, profiles, memory)
    account = {"format": FORMAT, **facts, "verification": verification.to_json(),
               "layers": [layer.to_json() for layer in layers]}  # fmt: skip
    # Before the build: what was verified is then there to be looked at, whatever the builder does.
    write_json(Path(job.folder) / NETWORK_FILE, account)
    engine: dict[str, Any] = {"engine_bytes": 0}
    if verification.verified:
        engine = _Builder(tools, builder, config, network, logger, messages).build(job, device)
        engine["inspection"] = inspect_engine(tools, logger, job, verification, device)
        write_json(Path(job.folder) / NETWORK_FILE, {**account, **engine})
    del parser  # it owns weights that the network refers to, so it lives until here
    # Where it was inspected, the built engine itself may break the plan.
    violations = engine.get("inspection", {}).get("violations", ())
    failure = verification.first_failure() or next(iter(violations), "")
    if failure and engine["engine_bytes"]:
        os.replace(Path(job.folder) / ENGINE_FILE, Path(job.folder) / REJECTED_FILE)
    return {**facts, "verified": not failure, "failure": failure, "counts": verification.counts(),
            "summary": verification.summary, "layers": len(layers), **engine}  # fmt: skip


def _logger(tools: Toolchain, messages: Messages) -> Any:
    trt: Any = tools.module

    class Log(trt.ILogger):
        """Passes warnings and errors on, and keeps the last error."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: tensorrt.ILogger.Severity, text: str) -> None:
            if severity > trt.ILogger.WARNING:
                return
            if severity < trt.ILogger.WARNING:
                self.last_error = text
            messages.send("log", severity=str(severity).rsplit(".", 1)[-1].lower(), text=text)

    return Log()


def _monitor(tools: Toolchain, messages: Messages) -> Any:
    trt: Any = tools.module

    class Monitor(trt.IProgressMonitor):
        """Passes the builder's phases and steps on, and stops it when the command ends."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            messages.send("phase", name=phase_name, parent=parent_phase, steps=int(num_steps))

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            messages.send("step", name=phase_name, step=int(step))
            return not messages.stop_wanted()

        def phase_finish(self, phase_name: str) -> None:
            messages.send("finish", name=phase_name)

    return Monitor()


def _parse(
    tools: Toolchain, builder: tensorrt.Builder, logger: Any, job: Job
) -> tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    network = builder.create_network(tools.network_flags)
    parser = tools.module.OnnxParser(network, logger)
    if not parser.parse_from_file(job.graph):
        found = list(map(parser.get_error, range(parser.num_errors)))
        texts, named = dict.fromkeys(map(_describe, found)), any(error.node_name() for error in found)
        what = f"the ONNX parser of {tools.name} refuses the graph: {'; '.join(texts) or logger.last_error}"
        todo = "replace these nodes" if named else "the ONNX file may be truncated: export it again"
        raise InputError(what, job.graph, todo)
    return network, parser


def _describe(error: tensorrt.ParserError) -> str:
    text = " ".join(str(error.desc()).split())
    node = error.node_name()
    return f"node '{node}' ({error.node_operator()}): {text}" if node else text


def _verify(job: Job, layers: Sequence[verify.ParsedLayer]) -> verify.Verification:
    if job.plan is not None:
        return verify.verify_network(
            PrecisionPlan.load(Path(job.plan)), layers, fp64=preflight.fp64_nodes(job)
        )
    # The parser names a nameless node after its first output.
    graph = preflight.load_graph(job)
    names = [(node.name or f"node_of_{node.output[0]}", node.op_type) for node in graph.graph.node]
    plan, others = verify.plan_by_type(names)
    return verify.verify_network(plan, layers, known=others)


@dataclass(frozen=True)
class _Builder:
    """Everything that a build needs, held together for as long as it takes."""

    tools: Toolchain
    builder: tensorrt.Builder
    config: tensorrt.IBuilderConfig
    network: tensorrt.INetworkDefinition
    logger: Any
    messages: Messages

    def build(self, job: Job, device: Gpu | None) -> dict[str, Any]:
        """Builds, and writes `model.plan`.

        Returns:
            Its size and its SHA-256.
        """
        self.config.progress_monitor = monitor = _monitor(self.tools, self.messages)
        save_timings = preflight.open_timing_cache(self.tools, self.config, job.options.timing_cache, device)
        engine = self.builder.build_serialized_network(self.network, self.config)
        del monitor  # the builder holds no reference of its own
        if engine is None:
            raise self._failure(job)
        target = Path(job.folder) / ENGINE_FILE
        with writing_to(target), target.open("wb") as stream:
            stream.write(engine)
        save_timings()
        return {"engine_bytes": int(engine.nbytes), "engine_sha256": sha256_file(target)}

    def _failure(self, job: Job) -> BuildFailed:
        error = self.logger.last_error
        if self.messages.stop_wanted():
            return BuildFailed("the build was stopped", job.graph)
        if any(sign in error for sign in _OUT_OF_MEMORY):
            return _out_of_memory(job, error)
        name = f"{self.tools.name} {self.tools.version}"
        return BuildFailed(f"{name} did not build the engine: {error}", job.graph)


def _out_of_memory(job: Job, error: str) -> BuildFailed:
    what = f"the builder ran out of memory: {error}"
    return BuildFailed(what, job.graph, "free some, or build fewer or smaller profiles")


def _die_with_the_command() -> None:
    """Asks Linux to end this process when the command is killed: a locked-up builder would stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_TYPES = {
    **verify.TYPES, "half": "HALF", "float16": "HALF", "float": "FLOAT", "float32": "FLOAT",
    "bfloat16": "BF16",
}  # fmt: skip
"""Words of the inspector's types → TensorRT's names of types."""

_TYPE_KEYS = ("Format/Datatype", "Datatype")
"""Where the inspector has a tensor's type: in TensorRT 10, and in 11."""


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine.

    Attributes:
        name, type: as the inspector lists them.
        nodes: the ONNX nodes that it stands for.
        types: types of its floating-point inputs and outputs, e.g. `HALF`.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    types: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The engine's layers against the verification.

    Attributes:
        layers: how many layers the engine has.
        typed: how many of them were compared: they name planned nodes of one type, and their own types.
        seen: how many planned nodes they name.
        unseen: planned nodes with a layer in the network that no layer of the engine names: folded into
            constants, or into a layer whose note does not name them.
        mixed: layers that fuse nodes of both types, or contain a cast.
        violations: what breaks the plan, each naming the layer and its nodes.
    """

    layers: int
    typed: int
    seen: int
    unseen: tuple[str, ...]
    mixed: tuple[str, ...]
    violations: tuple[str, ...]


def inspect_engine(
    tools: Toolchain, logger: Any, job: Job, verification: verify.Verification, device: Gpu | None
) -> dict[str, Any]:
    """Loads the engine that was just built and compares; plain JSON values.

    Returns:
        `run`, whether the engine was inspected; `verified`, whether types were read and none breaks the plan;
        the `reason` where it is not verified; and the fields of Inspection.
    """
    reason, engine, built_for = "", None, tools.built_for(job.options, device)
    if device is None:
        reason = "no GPU: the inspector needs the engine loaded"
    elif not runs_on(built_for, device.compute_capability):
        reason = f"the engine is for {', '.join(built_for)}, this GPU has {device.compute_capability}"
    elif job.options.weights == "stripped":
        reason = "the engine is without its weights"
    else:
        runtime = tools.module.Runtime(logger)
        engine = runtime.deserialize_cuda_engine((Path(job.folder) / ENGINE_FILE).read_bytes())
    if engine is None:
        reason = reason or f"the runtime does not load the engine: {logger.last_error}"
        return {"run": False, "verified": False, "reason": reason}
    found = compare(verification, read_layers(list(_accounts(tools, engine))))
    reason = next(iter(found.violations), "") if found.typed else "the inspector names no types of its layers"
    return {"run": True, "verified": not reason, "reason": reason, **asdict(found)}


def _accounts(tools: Toolchain, engine: tensorrt.ICudaEngine) -> Iterator[Mapping[str, Any]]:
    """The inspector's JSON for each profile, at the shapes that it is tuned for.

    Of an engine with dynamic shapes the inspector says "N/A due to dynamic shapes" in place of types, unless
    it is given an execution context whose shapes are set. Such a context needs no memory of its own.
    """
    trt = tools.module
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        return  # nothing was read, which is not verified
    inspector = engine.create_engine_inspector()
    for profile in range(engine.num_optimization_profiles):
        context.set_optimization_profile_async(profile, 0)
        for name in inputs:
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, profile)[1])
        inspector.execution_context = context
        yield json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def read_layers(accounts: Sequence[Mapping[str, Any]]) -> list[EngineLayer]:
    """The layers in the inspector's JSON, one account per profile.

    A layer without details has a bare name. One that stands in several accounts is taken from the first that
    names its types.
    """
    found: dict[str, EngineLayer] = {}
    for account in accounts:
        for layer in map(_read_layer, account.get("Layers", [])):
            if layer.name not in found or not found[layer.name].types:
                found[layer.name] = layer
    return list(found.values())


def _read_layer(layer: Mapping[str, Any] | str) -> EngineLayer:
    if isinstance(layer, str):
        return EngineLayer(layer, "", (), ())
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    types = (_type_of(str(tensor.get(key, ""))) for tensor in tensors for key in _TYPE_KEYS)
    nodes = tuple(dict.fromkeys(verify.NODE_NOTE.findall(str(layer.get("Metadata", "")))))
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    return EngineLayer(name, kind, nodes, tuple(dict.fromkeys(filter(None, types))))


def _type_of(text: str) -> str:
    """The floating-point type in words such as `Row major linear FP16 format` or `Half`; empty for others."""
    words = re.findall(r"[a-z]+\d*", text.lower())
    return next((_TYPES[word] for word in words if word in _TYPES), "")


def compare(verification: verify.Verification, layers: Sequence[EngineLayer]) -> Inspection:
    """Holds the engine's layers against the plan that the verification is about."""
    planned = {node.name: node for node in verification.nodes if node.planned in verify.TYPES}
    casts = {name for name, node in planned.items() if node.op in ("Cast", "CastLike")}
    mixed, violations, typed = [], [], 0
    for layer in layers:
        kinds = {planned[name].planned for name in layer.nodes if name in planned and name not in casts}
        has_cast = any(name in casts or name.startswith(CAST_PREFIX) for name in layer.nodes)
        if kinds and (len(kinds) > 1 or has_cast):
            mixed.append(layer.name)
            continue
        typed += bool(kinds and layer.types)
        for kind in kinds:
            if wrong := [name for name in layer.types if name != verify.TYPES[kind]]:
                found = f"layer '{layer.name}' of the engine has {'/'.join(wrong)}"
                violations.append(f"{', '.join(layer.nodes)}: planned {kind}, but {found}")
    named = {name for layer in layers for name in layer.nodes}
    unseen = tuple(node.name for node in planned.values() if node.layers and node.name not in named)
    return Inspection(len(layers), typed, len(named & set(planned)), unseen, tuple(mixed), tuple(violations))


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.stdout.flush()
    # Leave without the native libraries' own farewell: their work is done and on the disk.
    os._exit(0)
