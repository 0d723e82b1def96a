"""What is checked and recorded before a build: a build takes minutes, these checks take none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.hardware import Gpu
from bertmp.export.engine import triton_releases
from bertmp.export.engine.builders import Toolchain
from bertmp.export.engine.engine_options import EngineOptions
from bertmp.export.engine.job import Job
from bertmp.export.engine.memory_estimate import MemoryEstimate, check_fits, estimate
from bertmp.export.engine.parsed_network import ParsedLayer
from bertmp.export.engine.profiles import Profile, gaps


def check_builder(tools: Toolchain, options: EngineOptions, device: Gpu | None) -> None:
    """Refuses what this builder lacks, and a Triton release that would not load what it builds.

    Raises:
        InputError: names the option.
    """
    if options.triton_release is not None:
        triton_releases.require_match(
            triton_releases.find_release(options.triton_release), tools.name, tools.version,
            options.version_compatible, f"--triton-release {options.triton_release}",
        )  # fmt: skip
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
    bf16 = [layer.node or layer.name for layer in layers if "BF16" in layer.precision]
    if bf16:
        raise InputError(
            f"compute capability 7.5 has no BF16, and node '{bf16[0]}' runs in it",
            job.graph, "convert it to FP16 (--precision fp16), or leave --compute-capability 7.5 out",
        )  # fmt: skip
    products = [layer for layer in layers if layer.type == "MATRIX_MULTIPLY"]
    found = [layer.node for layer in products if "FLOAT" in layer.precision]
    if found:
        more = f" ({len(found) - 1} more are)" if len(found) > 1 else ""
        raise InputError(
            f"compute capability 7.5 has no FP32 matrix products, and node '{found[0]}' is one{more}",
            job.graph, "let the plan run them in FP16, or leave --compute-capability 7.5 out",
        )  # fmt: skip


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


def describe(
    tools: Toolchain,
    options: EngineOptions,
    device: Gpu | None,
    profiles: Sequence[Profile],
    memory: MemoryEstimate,
) -> dict[str, Any]:
    """What must be known to run the engine; plain JSON values."""
    return {
        "builder": tools.name,
        "builder_version": tools.version,
        "compute_capability": tools.built_for(options, device),
        "cuda": tools.cuda,
        "driver": tools.driver,
        "built_on": device.name if device else None,
        "triton_releases": triton_releases.releases_for(
            tools.name, tools.version, options.version_compatible
        ),
        "triton_source": triton_releases.SOURCE,
        "triton_release": options.triton_release,
        "version_compatible": options.version_compatible,
        "weights": options.weights,
        "profiles": [str(profile) for profile in profiles],
        "memory": memory.to_json(),
        "warnings": warnings(tools, profiles, options),
    }


def warnings(tools: Toolchain, profiles: Sequence[Profile], options: EngineOptions) -> list[str]:
    """What is allowed but may surprise."""
    found = tools.without_effect(vars(options))
    found += [f"no profile holds {gap}: such requests are padded or refused" for gap in gaps(profiles)]
    if options.weights == "stripped":
        found.append("the engine is without its weights: it runs once they are put back on the GPU")
    return found
