"""What is checked, configured and recorded before a build: a build takes minutes, these checks take none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto, TensorProto, helper

from bertmp.core.errors import InputError
from bertmp.core.hardware import Gpu
from bertmp.core.io import atomic_file, home
from bertmp.export.engine.builders import Toolchain
from bertmp.export.engine.compatibility import SOURCE, find_release, releases_for, require_match
from bertmp.export.engine.engine_options import EngineOptions, Profile, Shape, axes_of, default_profiles, gaps
from bertmp.export.engine.supervisor import Job
from bertmp.export.engine.verify import ParsedLayer
from bertmp.export.graph.types import element_types
from bertmp.export.graph.weights import without_weights

if TYPE_CHECKING:
    import tensorrt


def check_builder(tools: Toolchain, options: EngineOptions, device: Gpu | None) -> None:
    """Refuses what this builder lacks, and a Triton release that would not load what it builds.

    Raises:
        InputError: names the option.
    """
    if options.triton_release is not None:
        where = f"--triton-release {options.triton_release}"
        release = find_release(options.triton_release)
        require_match(release, tools.name, tools.version, options.version_compatible, where)
    tools.refuse_unsupported(vars(options), gpu=device is not None)
    if device is not None:
        tools.require_driver(device)


def check_targets(layers: Sequence[ParsedLayer], job: Job) -> None:
    """Refuses a graph that a wanted GPU cannot run.

    Raises:
        InputError: names the first node.
    """
    if "7.5" not in job.options.compute_capability:
        return
    bf16 = next((layer.node or layer.name for layer in layers if "BF16" in layer.precision), None)
    if bf16 is not None:
        what = f"compute capability 7.5 has no BF16, and node '{bf16}' runs in it"
        todo = "convert it to FP16 (--precision fp16), or leave --compute-capability 7.5 out"
        raise InputError(what, job.graph, todo)
    kinds = [(layer.node, layer.type, layer.precision) for layer in layers]
    found = [node for node, kind, precision in kinds if kind == "MATRIX_MULTIPLY" and "FLOAT" in precision]
    if found:
        more = f" ({len(found) - 1} more are)" if len(found) > 1 else ""
        what = f"compute capability 7.5 has no FP32 matrix products, and node '{found[0]}' is one{more}"
        todo = "let the plan run them in FP16, or leave --compute-capability 7.5 out"
        raise InputError(what, job.graph, todo)


def check_memory(
    job: Job, profiles: Sequence[Profile], tools: Toolchain, device: Gpu | None
) -> MemoryEstimate:
    """Estimates what the engine may need on the GPU.

    Raises:
        InputError: that is more than the GPU that was named, or is here, has.
    """
    found = estimate(load_graph(job), profiles)
    given = job.options.gpu_memory_mib
    if given is not None:
        check_fits(found, given << 20, "the GPU (--gpu-memory)")
    elif device is not None and tools.name == "tensorrt":  # it builds where it will run
        check_fits(found, device.memory_bytes, device.name)
    return found


def load_graph(job: Job) -> ModelProto:
    """The ONNX graph, without weights that lie in files beside it.

    Raises:
        InputError: it is not one.
    """
    try:
        return onnx.load(job.graph, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions are not part of onnx's interface
        raise InputError("not an ONNX graph", job.graph, "export it again") from error


def fp64_nodes(job: Job) -> list[str]:
    """Names of the nodes that read or write FP64 tensors, which TensorRT's parser makes FP32."""
    graph = load_graph(job)
    types = element_types(graph, strict=False)
    double = {name for name, kind in types.items() if kind == TensorProto.DOUBLE}
    return [node.name for node in graph.graph.node if double & {*node.input, *node.output}]


def describe(
    tools: Toolchain, job: Job, device: Gpu | None, profiles: Sequence[Profile], memory: MemoryEstimate
) -> dict[str, Any]:
    """What must be known to run the engine; plain JSON values."""
    options = job.options
    return {
        "builder": tools.name,
        "builder_version": tools.version,
        "compute_capability": tools.built_for(options, device),
        "cuda": tools.cuda,
        "driver": tools.driver,
        "built_on": device.name if device else None,
        "triton_releases": releases_for(tools.name, tools.version, options.version_compatible),
        "triton_source": SOURCE,
        **{name: vars(options)[name] for name in ("triton_release", "version_compatible", "weights")},
        "profiles": [str(profile) for profile in profiles],
        "memory": memory.to_json(),
        "warnings": warnings(tools, profiles, job),
    }


def warnings(tools: Toolchain, profiles: Sequence[Profile], job: Job) -> list[str]:
    """What is allowed but may surprise."""
    options = job.options
    found = tools.without_effect(vars(options))
    found += [f"no profile holds {gap}: such requests are padded or refused" for gap in gaps(profiles)]
    if job.positions and not options.profiles and options.target.is_file():
        found.append(f"the graph takes at most {job.positions} tokens: the default profiles end there")
    double = fp64_nodes(job)
    if double:
        found.append(f"TensorRT has no FP64: {len(double)} nodes that compute in it run in FP32")
    if options.weights == "stripped":
        found.append("the engine is without its weights: it runs once they are put back on the GPU")
    return found


@dataclass(frozen=True)
class ProfileMemory:
    """What one profile needs.

    Attributes:
        profile: as `MIN:OPT:MAX`.
        bytes: the most that the tensors alive at one time take at its largest shape.
        unknown: tensors whose shape could not be inferred; they are not counted.
    """

    profile: str
    bytes: int
    unknown: int


@dataclass(frozen=True)
class MemoryEstimate:
    """What an engine may need on the GPU.

    Attributes:
        weights_bytes: the graph's weights.
        profiles: each profile's tensors. Triton makes an execution context for every profile; by the
            allocation strategy that `deploy` sets, each takes what its own profile needs.
    """

    weights_bytes: int
    profiles: tuple[ProfileMemory, ...]

    @property
    def total_bytes(self) -> int:
        """The weights, and a context for every profile."""
        return self.weights_bytes + sum(entry.bytes for entry in self.profiles)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}


def estimate(graph: ModelProto, profiles: Sequence[Profile]) -> MemoryEstimate:
    """Estimates an engine's memory.

    Args:
        graph: with inputs `[batch, length]`; its weights need not be loaded.
    """
    outline = without_weights(graph)
    needs = tuple(ProfileMemory(str(profile), *_peak(outline, profile.max)) for profile in profiles)
    weights = sum(_size(tensor.data_type, tensor.dims) for tensor in graph.graph.initializer)
    return MemoryEstimate(weights, needs)


def check_fits(found: MemoryEstimate, memory_bytes: int, whose: str) -> None:
    """Checks an estimate against a GPU's memory.

    Args:
        whose: the GPU, for the message.

    Raises:
        InputError: names the largest profile where it does not fit.
    """
    if found.total_bytes <= memory_bytes:
        return
    largest = max(found.profiles, key=lambda entry: entry.bytes)
    total, weights, memory = (n / 2**20 for n in (found.total_bytes, found.weights_bytes, memory_bytes))
    what = f"the engine may need {total:,.0f} MiB ({weights:,.0f} of them weights), {whose} has {memory:,.0f}"
    raise InputError(what, f"--profile {largest.profile}", "give smaller profiles or a lower --max-batch")


def _peak(outline: ModelProto, shape: Shape) -> tuple[int, int]:
    """Bytes alive at the busiest node, and how many tensors are missing from them."""
    fixed = ModelProto()
    fixed.CopyFrom(outline)
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 2 and any(not dim.dim_value for dim in dims):
            dims[0].dim_value, dims[1].dim_value = shape.batch, shape.length
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")  # it names dimensions that now have numbers
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception:  # native code's own: an operator or a shape that it cannot work with
        return 0, sum(len(node.output) for node in fixed.graph.node)
    sizes = {}
    for value in (*fixed.graph.value_info, *fixed.graph.output):
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        if kind.HasField("shape") and all(dims):
            sizes[value.name] = _size(kind.elem_type, dims)
    written = {name for node in fixed.graph.node for name in node.output if name}
    return _busiest(fixed, sizes), len(written - set(sizes))


def _busiest(graph: ModelProto, sizes: dict[str, int]) -> int:
    """The most bytes alive at a time, of tensors that nodes write."""
    nodes = graph.graph.node
    last = {name: number for number, node in enumerate(nodes) for name in node.input}
    kept = {value.name for value in graph.graph.output}
    alive = most = 0
    for number, node in enumerate(nodes):
        alive += sum(sizes.get(name, 0) for name in node.output)
        most = max(most, alive)
        ended = {name for name in (*node.input, *node.output) if last.get(name, number) == number}
        alive -= sum(sizes.get(name, 0) for name in ended - kept)
    return most


def _size(kind: int, dims: Sequence[int]) -> int:
    try:
        width = helper.tensor_dtype_to_np_dtype(kind).itemsize
    except (KeyError, TypeError):
        width = 4
    return math.prod(dims) * int(width)


def configure(tools: Toolchain, builder: tensorrt.Builder, options: EngineOptions) -> tensorrt.IBuilderConfig:
    """A builder config with everything but the profiles and the timing cache.

    Raises:
        InputError: a compute capability that the builder does not know.
    """
    trt = tools.module
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's account names the nodes
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 in the plan means FP32, not its 10-bit shorthand
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    tools.set_flags(config, options)
    tools.set_hardware(config, options.hardware_compatible)
    tools.set_targets(config, options.capabilities)
    return config


def choose_profiles(
    network: tensorrt.INetworkDefinition, options: EngineOptions, positions: int | None
) -> list[Profile]:
    """The profiles that were asked for, or the default ones for what the graph leaves open."""
    if options.profiles:
        return options.chosen_profiles(positions)
    # What a graph fixes, in any of its inputs; 0 for an axis that is dynamic in all.
    dims = [shape for shape in _input_dims(network).values() if len(shape) == 2]
    batch, length = (max([0, *(shape[axis] for shape in dims)]) for axis in (0, 1))
    return default_profiles(positions, options.max_batch, Shape(batch, length))


def add_profiles(
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    network: tensorrt.INetworkDefinition,
    profiles: list[Profile],
) -> None:
    """Gives the config its profiles; none for a graph whose shapes are all fixed and agree.

    Raises:
        InputError: a profile that the graph's own shapes contradict or the builder refuses.
    """
    dims = _input_dims(network)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, shape in dims.items():
            made.set_shape(name, *axes_of(profile, shape, name))
        if any(-1 in shape for shape in dims.values()) and config.add_optimization_profile(made) < 0:
            what = "the builder refuses the profile"
            raise InputError(what, f"--profile {profile}", "check MIN, OPT and MAX")


def _input_dims(network: tensorrt.INetworkDefinition) -> dict[str, tuple[int, ...]]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    return {tensor.name: tuple(int(dim) for dim in tensor.shape) for tensor in inputs}


def open_timing_cache(
    tools: Toolchain, config: tensorrt.IBuilderConfig, chosen: Path | None, device: Gpu | None
) -> Callable[[], None]:
    """Gives the config the timings that earlier builds left, none where there are none.

    Returns:
        A function that writes the timings after the build, atomically; nothing where the builder times none.

    Raises:
        InputError: a file that was named holds timings of another builder version or GPU.
    """
    path = timing_cache_path(tools, chosen, device)
    if path is None:
        return lambda: None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # Timings of another version or GPU are refused: they would choose the wrong kernels.
    if not config.set_timing_cache(cache, False):
        what = "the timing cache is of another builder version or GPU"
        raise InputError(what, path, "name a folder: it keeps one file for each")

    def save() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(cache.serialize())

    return save


def timing_cache_path(tools: Toolchain, chosen: Path | None, device: Gpu | None) -> Path | None:
    """Where the timings of this builder version on this GPU are kept; None where it times nothing.

    Args:
        chosen: a file; or a folder that holds one a builder version and GPU; None for `BERTMP_HOME`'s.
    """
    if not tools.times_kernels:
        return None
    if chosen is not None and not chosen.is_dir():
        return chosen
    folder = chosen or home() / "timing-caches"
    gpu = f"{device.name} {device.compute_capability}" if device else "unknown"
    slug = re.sub(r"[^a-z0-9.]+", "-", gpu.lower()).strip("-")
    return folder / f"{tools.name}-{tools.version}-{slug}.cache"
