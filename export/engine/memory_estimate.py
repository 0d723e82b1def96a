"""How much GPU memory an engine may need, estimated from the graph before anything is built.

Every tensor's shape is inferred at the largest shape of a profile, and a tensor takes memory from the node
that writes it to the last one that reads it. A builder fuses nodes and so keeps fewer of them: the estimate
is what an engine without fusions would need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import ModelProto, helper

from bertmp.core.errors import InputError
from bertmp.export.engine.profiles import Profile, Shape
from bertmp.export.graph.weightless import without_weights


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
        profiles: each profile's tensors; one of them is used at a time.
    """

    weights_bytes: int
    profiles: tuple[ProfileMemory, ...]

    @property
    def total_bytes(self) -> int:
        """The weights and the largest profile's tensors."""
        return self.weights_bytes + max((entry.bytes for entry in self.profiles), default=0)

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
    raise InputError(
        f"the engine may need {total:,.0f} MiB ({weights:,.0f} of them weights), {whose} has {memory:,.0f}",
        f"--profile {largest.profile}", "give smaller profiles or a lower --max-batch",
    )  # fmt: skip


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
