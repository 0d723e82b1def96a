"""The builder process: parses the graph, proves its precision, builds the engine.

Started by `supervisor.run_job` as `python -m bertmp.export.engine.worker DESCRIPTOR`, with the descriptor
of the pipe that takes its messages. Whatever happens in here, the command outlives it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertmp.errors import BertmpError, BuildFailed, InputError
from bertmp.export.engine.job import ENGINE_FILE, NETWORK_FILE, Job, Messages, error_message
from bertmp.export.engine.network import Layer, read_network
from bertmp.export.engine.profiles import Profile, Shape, axes_of, default_profiles
from bertmp.export.engine.proof import Proof, plan_by_type, prove
from bertmp.export.engine.toolchain import Toolchain, find_toolchain
from bertmp.export.precision.plan import PrecisionPlan
from bertmp.files import atomic_file, write_json, writing_to

FORMAT = 1
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
        return  # the command was interrupted before it could say what to do
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
    """Writes `network.json` and, where the precision is proven, `model.plan` into the job's folder.

    Returns: what the command tells of the build; plain JSON values.
    """
    tools = find_toolchain(job.settings.builder)
    tools.refuse_unsupported(vars(job.settings))
    messages.send("toolchain", name=tools.name, version=tools.version)
    trt, logger = tools.module, _logger(tools.module, messages)
    builder = trt.Builder(logger)
    config = _configure(tools, builder, job)
    network, parser = _parse(tools, builder, logger, job)
    profiles = _add_profiles(builder, config, network, job)
    layers = read_network(network)
    _check_targets(layers, job)
    proof = _prove(job, layers)
    facts = {
        "builder": tools.name,
        "builder_version": tools.version,
        "compute_capability": tools.built_for(job.settings.compute_capability),
        "profiles": [str(profile) for profile in profiles],
    }
    _write_network(job, facts, layers, proof)
    engine_bytes = 0
    if proof.proven:
        engine_bytes = _build_engine(tools, builder, config, network, logger, messages, job)
    del parser  # it owns weights that the network refers to, so it lives until here
    return {**facts, "proven": proof.proven, "failure": proof.first_failure(), "counts": proof.counts(),
            "summary": proof.summary, "layers": len(layers), "engine_bytes": engine_bytes}  # fmt: skip


def _logger(trt: Any, messages: Messages) -> Any:
    class Log(trt.ILogger):
        """Passes warnings and errors on, and keeps the last error."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, text: str) -> None:
            if severity > trt.ILogger.WARNING:
                return
            if severity < trt.ILogger.WARNING:
                self.last_error = text
            messages.send("log", severity=str(severity).rsplit(".", 1)[-1].lower(), text=text)

    return Log()


def _monitor(trt: Any, messages: Messages) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Passes the builder's phases and steps on, and stops it when the command says so."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            messages.send("phase", name=phase_name, parent=parent_phase, steps=int(num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            messages.send("step", name=phase_name, step=int(step))
            return not messages.stop_wanted()

        def phase_finish(self, phase_name: str) -> None:
            messages.send("finish", name=phase_name)

    return Monitor()


def _configure(tools: Toolchain, builder: Any, job: Job) -> Any:
    trt, settings = tools.module, job.settings
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's account names the nodes
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 in the plan means FP32, not its 10-bit shorthand
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    tools.set_targets(config, settings.compute_capability)
    return config


def _parse(tools: Toolchain, builder: Any, logger: Any, job: Job) -> tuple[Any, Any]:
    network = builder.create_network(tools.network_flags)
    parser = tools.module.OnnxParser(network, logger)
    if not parser.parse_from_file(job.graph):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        texts = dict.fromkeys(_describe(error) for error in found)
        named = any(error.node_name() for error in found)
        raise InputError(
            f"the ONNX parser of {tools.name} refuses the graph: {'; '.join(texts) or logger.last_error}",
            job.graph, "replace these nodes" if named else "is it a whole ONNX file? export it anew",
        )  # fmt: skip
    return network, parser


def _describe(error: Any) -> str:
    text = " ".join(str(error.desc()).split())
    node = error.node_name()
    return f"node '{node}' ({error.node_operator()}): {text}" if node else text


def _add_profiles(builder: Any, config: Any, network: Any, job: Job) -> list[Profile]:
    """Gives the config its profiles; none for a graph whose shapes are all fixed and agree."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    dims = {tensor.name: tuple(int(dim) for dim in tensor.shape) for tensor in inputs}
    profiles = list(job.settings.profiles)
    if not profiles:
        # What a graph fixes, in any of its inputs; 0 for an axis that is dynamic in all.
        batch, length = (
            max([0, *(shape[axis] for shape in dims.values() if len(shape) == 2)]) for axis in (0, 1)
        )
        profiles = default_profiles(job.settings.max_length, job.settings.max_batch, Shape(batch, length))
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, shape in dims.items():
            made.set_shape(name, *axes_of(profile, shape, name))
        if any(-1 in shape for shape in dims.values()) and config.add_optimization_profile(made) < 0:
            raise InputError(
                "the builder refuses the profile", f"--profile {profile}", "check MIN, OPT and MAX"
            )
    return profiles


def _check_targets(layers: Sequence[Layer], job: Job) -> None:
    """Refuses, before the build, a graph that a wanted GPU cannot run."""
    if "7.5" not in job.settings.compute_capability:
        return
    for layer in layers:
        if layer.type == "MATRIX_MULTIPLY" and "FLOAT" in layer.precision:
            raise InputError(
                f"compute capability 7.5 has no FP32 matrix products, and node '{layer.node}' is one",
                job.graph, "convert it to FP16, or leave --compute-capability 7.5 out",
            )  # fmt: skip


def _prove(job: Job, layers: Sequence[Layer]) -> Proof:
    if job.plan is not None:
        return prove(PrecisionPlan.load(Path(job.plan)), layers)
    import onnx

    try:
        graph = onnx.load(job.graph, load_external_data=False).graph
    except Exception as error:  # protobuf's own exceptions are no part of onnx's interface
        raise InputError("not an ONNX graph", job.graph, "export it again") from error
    # The parser names a nameless node after its first output.
    names = [(node.name or f"node_of_{node.output[0]}", node.op_type) for node in graph.node]
    plan, others = plan_by_type(names)
    return prove(plan, layers, known=others)


def _write_network(job: Job, facts: dict[str, Any], layers: Sequence[Layer], proof: Proof) -> None:
    content = {
        "format": FORMAT,
        **facts,
        "proof": proof.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    write_json(Path(job.folder) / NETWORK_FILE, content)


def _build_engine(
    tools: Toolchain, builder: Any, config: Any, network: Any, logger: Any, messages: Messages, job: Job
) -> int:
    """Builds, and writes `model.plan`. Returns its size in bytes."""
    config.progress_monitor = monitor = _monitor(tools.module, messages)
    cache = _open_timing_cache(config, job.settings.timing_cache)
    engine = builder.build_serialized_network(network, config)
    del monitor  # the builder holds no reference of its own
    if engine is None:
        if messages.stop_wanted():
            raise BuildFailed("the build was stopped", job.graph)
        if any(sign in logger.last_error for sign in _OUT_OF_MEMORY):
            raise _out_of_memory(job, logger.last_error)
        raise BuildFailed(
            f"{tools.name} {tools.version} did not build the engine: {logger.last_error}", job.graph
        )
    target = Path(job.folder) / ENGINE_FILE
    with writing_to(target), target.open("wb") as stream:
        stream.write(engine)
    if cache is not None:
        with atomic_file(Path(str(job.settings.timing_cache))) as temporary:
            temporary.write_bytes(cache.serialize())
    return int(engine.nbytes)


def _open_timing_cache(config: Any, path: str | None) -> Any:
    """The timing cache in `path`, or a new one; None where no file was named."""
    if path is None:
        return None
    content = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(content)
    # Timings of another version or GPU are refused: they would choose the wrong kernels.
    if not config.set_timing_cache(cache, False):
        raise InputError(
            "the timing cache is of another builder version or GPU",
            path,
            "name another file for this machine",
        )
    return cache


def _out_of_memory(job: Job, said: str) -> BuildFailed:
    return BuildFailed(
        f"the builder ran out of memory: {said}", job.graph, "free some, or build fewer or smaller profiles"
    )


def _die_with_the_command() -> None:
    """Asks Linux to end this process when the command is killed: a locked-up builder would stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.stdout.flush()
    # Leave without the native libraries' own farewell: their work is done and on the disk.
    os._exit(0)
