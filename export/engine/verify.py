"""Verifies that a parsed network runs every node in its planned precision.

TensorRT builds strongly typed networks, so the types of the parsed layers' tensors are those of the engine.
Pure data in, pure data out: nothing here needs a builder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bertmp.export.precision.plan import CAST_PREFIX, NodePlan, PrecisionPlan

if TYPE_CHECKING:
    import tensorrt

_MUST_BE = {
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "LayerNormalization": "NORMALIZATION",
    "Softmax": "SOFTMAX",
}
"""Operators that must not vanish or be taken apart: the layer type in which each has to arrive."""

_CONVERTS = ("Cast", "CastLike")
"""Operators that change a type by their nature."""

_MOVES = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY", "SLICE", "CONCATENATION", "GATHER")
"""Layer types that move values and change none."""

TYPES = {"fp16": "HALF", "bf16": "BF16", "fp32": "FLOAT"}
"""Precisions of a plan → TensorRT's names of types."""


@dataclass(frozen=True)
class NodeVerification:
    """One entry of the plan, judged.

    Attributes:
        name, op, planned: as in the plan.
        status: `verified` or `violated`.
        layers: the TensorRT layers that it became; empty where the parser evaluated it, or it is missing.
        violations: what breaks the plan, each naming the layer; empty where verified.
    """

    name: str
    op: str
    planned: str
    status: str
    layers: tuple[str, ...]
    violations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Added:
    """A layer that the parser added of itself.

    Attributes:
        layer, type: its name and TensorRT type.
        role: `constant`, `index` (integers: shapes and positions), `move` (values unchanged), `cast`.
        nodes: the ONNX nodes that it serves.
    """

    layer: str
    type: str
    role: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        nodes: every entry of the plan, in its order.
        planned_casts: layers of the casts that the conversion inserted.
        added: layers that the parser added of itself, with their role.
        unaccounted: layers that belong to nothing of the above, each with why.
        summary: layer type → precision → count, over all layers.
    """

    nodes: tuple[NodeVerification, ...]
    planned_casts: tuple[str, ...]
    added: tuple[Added, ...]
    unaccounted: tuple[str, ...]
    summary: dict[str, dict[str, int]]

    @property
    def violated(self) -> list[NodeVerification]:
        return [node for node in self.nodes if node.status == "violated"]

    @property
    def verified(self) -> bool:
        """Whether every node is as planned and every layer accounted for."""
        return not self.violated and not self.unaccounted

    def first_failure(self) -> str:
        """The first reason why it is not verified, with how many follow."""
        failures = [f"{node.name}: {text}" for node in self.violated for text in node.violations]
        failures += self.unaccounted
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        return f"{failures[0]}{more}" if failures else ""

    def counts(self) -> dict[str, int]:
        """How many layers of each kind the account has."""
        roles = [added.role for added in self.added]
        return {
            "nodes": len(self.nodes),
            "violated": len(self.violated),
            "planned_casts": len(self.planned_casts),
            **{f"added_{role}": roles.count(role) for role in sorted(set(roles))},
            "unaccounted": len(self.unaccounted),
        }

    def to_json(self) -> dict[str, Any]:
        head = {"verified": self.verified, "counts": self.counts(), "summary": self.summary}
        return {**head, **asdict(self)}


def verification_of(network: Mapping[str, Any]) -> dict[str, Any]:
    """The verification in a `network.json`; version 0.1 called it `proof`, and its result `proven`."""
    found = dict(network.get("verification") or network["proof"])
    return {**found, "verified": found.get("verified", found.get("proven"))}


def verify_network(
    plan: PrecisionPlan,
    layers: Sequence[ParsedLayer],
    known: Collection[str] = (),
    fp64: Collection[str] = (),
) -> Verification:
    """Judges every node of the plan and accounts for every layer.

    Args:
        known: names of nodes that the graph has and the plan does not judge.
        fp64: names of nodes that compute in FP64, which a plan leaves alone and TensorRT does not have: they
            must be FP32.
    """
    planned = {node.name for node in plan.nodes}
    layers_of: dict[str, list[ParsedLayer]] = {}
    for layer in layers:
        layers_of.setdefault(layer.node, []).append(layer)
    added, strangers = _account_for_added(layers_of.get("", []), layers)
    casts_at = {node: item.layer for item in added if item.role == "cast" for node in item.nodes}
    casts = []
    for layer in layers:
        if layer.node.startswith(CAST_PREFIX):
            casts += [layer.name] if layer.node not in planned else []
        elif layer.node and layer.node not in planned and layer.node not in known:
            whose = f"is of node '{layer.node}', which the plan does not have"
            strangers.append(f"layer '{layer.name}' ({layer.type}) {whose}")
    judged = tuple(
        _judge(
            replace(node, precision="fp32") if node.name in fp64 else node,
            layers_of.get(node.name, []),
            casts_at,
        )
        for node in plan.nodes
    )
    return Verification(judged, tuple(casts), tuple(added), tuple(strangers), summarise(layers))


def plan_by_type(nodes: Iterable[tuple[str, str]]) -> tuple[PrecisionPlan, frozenset[str]]:
    """What a graph without a plan is held to: normalisation and softmax FP32, matrix products FP16.

    Args:
        nodes: name and operator of every node of the graph.

    Returns:
        The plan of the nodes that are judged, and the names of the others.
    """
    nodes = list(nodes)
    low = ("MatMul", "Gemm")
    judged = tuple(
        NodePlan(name, op, "", "fp16" if op in low else "fp32") for name, op in nodes if op in _MUST_BE
    )
    return PrecisionPlan("", judged), frozenset(name for name, op in nodes if op not in _MUST_BE)


def _judge(node: NodePlan, layers: Sequence[ParsedLayer], casts_at: dict[str, str]) -> NodeVerification:
    violations = list(_violations(node, layers))
    if node.precision == "fp32" and node.name in casts_at and node.op not in _CONVERTS:
        violations.append(f"planned fp32, but the parser added the cast '{casts_at[node.name]}' to it")
    names, status = tuple(layer.name for layer in layers), "violated" if violations else "verified"
    return NodeVerification(node.name, node.op, node.precision, status, names, tuple(violations))


def _violations(node: NodePlan, layers: Sequence[ParsedLayer]) -> Iterable[str]:
    kind = _MUST_BE.get(node.op)
    if kind and node.precision != "integer" and not any(layer.type == kind for layer in layers):
        yield f"planned {node.precision}, but the network has no {kind} layer of it"
    for layer in layers if node.op not in _CONVERTS else ():
        for place, tensor in layer.floats:
            if tensor.dtype != TYPES.get(node.precision):
                found = f"layer '{layer.name}' ({layer.type}) has {tensor.dtype} {place}"
                yield f"planned {node.precision}, but {found}"


def _account_for_added(
    unnamed: Sequence[ParsedLayer], layers: Sequence[ParsedLayer]
) -> tuple[list[Added], list[str]]:
    """Roles of the layers that carry no node's name, and those that have none."""
    producer = {tensor.name: layer for layer in layers for tensor in layer.outputs}
    consumers: dict[str, list[ParsedLayer]] = {}
    for layer in layers:
        for tensor in layer.inputs:
            consumers.setdefault(tensor.name, []).append(layer)

    def below(layer: ParsedLayer) -> list[ParsedLayer]:
        return [user for tensor in layer.outputs for user in consumers.get(tensor.name, [])]

    def above(layer: ParsedLayer) -> list[ParsedLayer]:
        return [producer[tensor.name] for tensor in layer.inputs if tensor.name in producer]

    added, strangers = [], []
    for layer in unnamed:
        if role := _role(layer):
            # The node that it serves: the one its values flow into, else out of.
            owners = _nearest_nodes(layer, below) or _nearest_nodes(layer, above)
            added.append(Added(layer.name, layer.type, role, tuple(sorted(owners))))
        else:
            strangers.append(f"layer '{layer.name}' ({layer.type}, {layer.precision}) is of no node")
    return added, strangers


def _role(layer: ParsedLayer) -> str:
    kinds = {tensor.dtype for _, tensor in layer.floats}
    if layer.type == "CONSTANT":
        return "constant"
    if not kinds:
        return "index"
    if layer.type == "CAST":
        return "cast"
    return "move" if layer.type in _MOVES and len(kinds) == 1 else ""


def _nearest_nodes(start: ParsedLayer, neighbours: Callable[[ParsedLayer], list[ParsedLayer]]) -> set[str]:
    """Names of the nearest nodes in one direction, through layers of no node."""
    found: set[str] = set()
    seen, queue = {start.name}, neighbours(start)
    while queue:
        layer = queue.pop()
        if layer.node:
            found.add(layer.node)
        elif layer.name not in seen:
            queue += neighbours(layer)
        seen.add(layer.name)
    return found


FLOATS = ("FLOAT", "HALF", "BF16", "FP8", "FP4", "E8M0")
"""TensorRT's floating-point types by name."""

NODE_NOTE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\x1e|\[|$))")
"""How the metadata of a layer, and of an engine's fused layer, name the ONNX nodes that it came from."""


@dataclass(frozen=True)
class LayerTensor:
    """An input or output of a layer.

    Attributes:
        name: the tensor's name.
        dtype: TensorRT's name for its type, e.g. `HALF`, `FLOAT`, `INT64`.
        shape: its dimensions, −1 where dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ParsedLayer:
    """One layer of the parsed network.

    Attributes:
        name: TensorRT's name for it.
        type: TensorRT's layer type, e.g. `MATRIX_MULTIPLY`.
        node: the ONNX node it came from; empty where the parser added it of itself.
        inputs, outputs: its tensors.
    """

    name: str
    type: str
    node: str
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]

    @property
    def floats(self) -> tuple[tuple[str, LayerTensor], ...]:
        """The floating-point tensors whose values it reads or writes, each with its place (`input 0`)."""
        # A SHAPE layer looks at its input's dimensions, never at its values.
        placed = {"input": () if self.type == "SHAPE" else self.inputs, "output": self.outputs}
        return tuple(
            (f"{side} {index}", tensor)
            for side, tensors in placed.items()
            for index, tensor in enumerate(tensors)
            if tensor.dtype in FLOATS
        )

    @property
    def precision(self) -> str:
        """The one type of its floating-point tensors, `A/B` where they differ, else its output's type."""
        kinds = dict.fromkeys(tensor.dtype for _, tensor in self.floats)
        return "/".join(kinds or [tensor.dtype for tensor in self.outputs[:1]]) or "NONE"

    def to_json(self) -> dict[str, Any]:
        head = {"name": self.name, "type": self.type, "precision": self.precision, "node": self.node}
        return {**head, **asdict(self)}


def origin(metadata: str) -> str:
    """The ONNX node's name in a layer's metadata, which reads `[ONNX Layer: NAME]`; empty without one."""
    return next(iter(NODE_NOTE.findall(metadata or "")), "")


def read_network(network: tensorrt.INetworkDefinition) -> list[ParsedLayer]:
    """All layers of a TensorRT `INetworkDefinition`, in its order."""
    found = []
    for layer in map(network.get_layer, range(network.num_layers)):
        inputs = _tensors(map(layer.get_input, range(layer.num_inputs)))
        outputs = _tensors(map(layer.get_output, range(layer.num_outputs)))
        found.append(ParsedLayer(layer.name, _bare(layer.type), origin(layer.metadata), inputs, outputs))
    return found


def _tensors(tensors: Iterable[tensorrt.ITensor | None]) -> tuple[LayerTensor, ...]:
    found = (one for one in tensors if one is not None)  # an optional input that is not connected is None
    return tuple(LayerTensor(tensor.name, _bare(tensor.dtype), _dims(tensor.shape)) for tensor in found)


def _dims(shape: tensorrt.Dims) -> tuple[int, ...]:
    try:
        return tuple(int(dim) for dim in shape)
    except ValueError:  # TensorRT's Dims of an unknown rank has a negative length
        return ()


def _bare(value: Any) -> str:
    """`DataType.HALF` → `HALF`."""
    return str(value).rsplit(".", 1)[-1]


def summarise(layers: Sequence[ParsedLayer]) -> dict[str, dict[str, int]]:
    """Layer type → precision → how many layers, e.g. `{"NORMALIZATION": {"FLOAT": 13}}`."""
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        counts.setdefault(layer.type, Counter())[layer.precision] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}
