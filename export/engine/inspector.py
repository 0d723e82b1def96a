"""Compares the built engine's layers, as its inspector lists them, with the verified network.

The network is verified before the build; a fused layer of the engine covers several of its nodes. Where the
nodes of one are all planned in one type, and none of them is a cast, its tensors must be of that type. Where
they are not, the fusion spans a planned change of type, which happens inside it: such layers are listed.

Written to the documented output of `IEngineInspector`. It was not run: the engine must be loaded, and that
needs a GPU. Without one the build reports that, and only the network is verified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertmp.core.hardware import Gpu
from bertmp.export.engine.builders import Toolchain, runs_on
from bertmp.export.engine.supervisor import ENGINE_FILE, Job
from bertmp.export.engine.verify import Verification
from bertmp.export.precision.plan import CAST_PREFIX

_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\x1e|\[|$))")
_TYPES = {
    "fp16": "HALF",
    "half": "HALF",
    "fp32": "FLOAT",
    "float": "FLOAT",
    "bf16": "BF16",
    "bfloat16": "BF16",
}
"""Words of the inspector's `Format/Datatype` → TensorRT's names of types."""
_WANTED = {"fp16": "HALF", "bf16": "BF16", "fp32": "FLOAT"}


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
        seen: how many planned nodes they name.
        unseen: planned nodes with a layer in the network that no layer of the engine names: folded into
            constants, or into a layer whose note does not name them.
        mixed: layers that fuse nodes of both types, or contain a cast.
        violations: what breaks the plan, each naming the layer and its nodes.
    """

    layers: int
    seen: int
    unseen: tuple[str, ...]
    mixed: tuple[str, ...]
    violations: tuple[str, ...]


def inspect_engine(
    tools: Toolchain,
    logger: Any,
    job: Job,
    verification: Verification,
    built_for: Sequence[str],
    device: Gpu | None,
) -> dict[str, Any]:
    """Loads the engine that was just built and compares; plain JSON values.

    Returns:
        The fields of Inspection under `run: true`, or the reason why it was not done.
    """
    reason = _why_not(job, built_for, device)
    if reason:
        return {"run": False, "reason": reason}
    trt = tools.module
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine((Path(job.folder) / ENGINE_FILE).read_bytes())
    if engine is None:
        return {"run": False, "reason": f"the runtime does not load the engine: {logger.last_error}"}
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return {"run": True, **asdict(compare(verification, read_layers(json.loads(text))))}


def _why_not(job: Job, built_for: Sequence[str], device: Gpu | None) -> str:
    if device is None:
        return "no GPU: the inspector needs the engine loaded"
    if not runs_on(built_for, device.compute_capability):
        return f"the engine is for {', '.join(built_for)}, this GPU has {device.compute_capability}"
    if job.options.weights == "stripped":
        return "the engine is without its weights"
    return ""


def read_layers(account: Mapping[str, Any]) -> list[EngineLayer]:
    """The layers in the inspector's JSON; a layer without details has a bare name."""
    return [_read_layer(layer) for layer in account.get("Layers", [])]


def _read_layer(layer: Mapping[str, Any] | str) -> EngineLayer:
    if isinstance(layer, str):
        return EngineLayer(layer, "", (), ())
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    types = (_type_of(str(tensor.get("Format/Datatype", ""))) for tensor in tensors)
    return EngineLayer(
        name=str(layer.get("Name", "")),
        type=str(layer.get("LayerType", "")),
        nodes=tuple(dict.fromkeys(_NODE.findall(str(layer.get("Metadata", ""))))),
        types=tuple(dict.fromkeys(kind for kind in types if kind)),
    )


def _type_of(text: str) -> str:
    """The floating-point type in words such as `Row major linear FP16 format` or `Half`; empty for others."""
    words = re.findall(r"[a-z]+\d*", text.lower())
    return next((_TYPES[word] for word in words if word in _TYPES), "")


def compare(verification: Verification, layers: Sequence[EngineLayer]) -> Inspection:
    """Holds the engine's layers against the plan that the verification is about."""
    planned = {node.name: node for node in verification.nodes if node.planned in _WANTED}
    casts = {name for name, node in planned.items() if node.op in ("Cast", "CastLike")}
    mixed, violations = [], []
    for layer in layers:
        kinds = {planned[name].planned for name in layer.nodes if name in planned and name not in casts}
        if not kinds:
            continue
        if len(kinds) > 1 or _has_cast(layer.nodes, casts):
            mixed.append(layer.name)
            continue
        (kind,) = kinds
        wrong = [name for name in layer.types if name != _WANTED[kind]]
        if wrong:
            nodes = ", ".join(layer.nodes)
            violations.append(
                f"{nodes}: planned {kind}, but layer '{layer.name}' of the engine has {'/'.join(wrong)}"
            )
    named = {name for layer in layers for name in layer.nodes}
    unseen = tuple(node.name for node in planned.values() if node.layers and node.name not in named)
    return Inspection(len(layers), len(named & set(planned)), unseen, tuple(mixed), tuple(violations))


def _has_cast(nodes: Iterable[str], casts: set[str]) -> bool:
    return any(name in casts or name.startswith(CAST_PREFIX) for name in nodes)
