"""What `explain` finds, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertmp.core.io import JsonSerializable

Severity = Literal["error", "warning", "note"]
"""`error`: answers are wrong, or it does not load; `warning`: they may be, or something is wasted."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know.

    Attributes:
        severity: see `Severity`.
        rule: what was looked at, e.g. `mask-constant`.
        node: the node where it shows, the first of several; empty where it concerns the entire graph.
        sentence: what was found, with its numbers.
        advice: what to do.
        nodes: every node that it concerns.
    """

    severity: Severity
    rule: str
    node: str
    sentence: str
    advice: str
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weights:
    """The weights that are stored in one type.

    Attributes:
        tensors, elements, bytes: how many.
        largest: largest magnitude; infinite where one is.
        subnormal: share of the values other than 0 that lie below their type's smallest normal number, of
            FP32 weights FP16's.
        zero: share of zeros.
    """

    tensors: int
    elements: int
    bytes: int
    largest: float
    subnormal: float
    zero: float


@dataclass(frozen=True)
class TensorSummary:
    """The magnitudes of one tensor on the calibration examples.

    Attributes:
        name, node, block: the tensor, the node that writes it and where that is.
        type: the type that it is held in.
        largest: largest magnitude; infinite where it overflowed or was no number.
        headroom: FP16's largest number (BF16's in a BF16 graph) over `largest`.
        subnormal: share of the values other than 0 below that type's smallest normal number.
    """

    name: str
    node: str
    block: str
    type: str
    largest: float
    headroom: float
    subnormal: float


@dataclass(frozen=True)
class BlockSummary:
    """A part of the graph, such as `bert.encoder.layer.3`.

    Attributes:
        nodes: precision → number of nodes.
        weights_largest: largest magnitude of its weights.
        largest: of its tensors on the calibration examples, mask paths excepted; None without calibration.
        headroom: the least of its tensors'; without calibration, of its weights.
        subnormal: the largest share of its tensors, softmax's apart; None without calibration.
        tensor: the one with the least headroom; empty without calibration.
    """

    name: str
    nodes: Mapping[str, int]
    weights_largest: float
    largest: float | None
    headroom: float
    subnormal: float | None
    tensor: str


@dataclass(frozen=True)
class Mask:
    """An attention-mask constant.

    Attributes:
        constant: the tensor that holds it.
        value: as it is stored; may be infinite.
        added_in: the types of the additions and selections between it and the softmaxes.
        softmaxes: how many it reaches.
        survives: whether its sum with a score stays finite in FP16.
    """

    constant: str
    value: float
    added_in: tuple[str, ...]
    softmaxes: int
    survives: bool


@dataclass(frozen=True)
class Casts:
    """Casts between floating-point types.

    Attributes:
        total: all of them.
        kinds: `fp32 to fp16` → number.
        in_a_row: those that read another cast's result.
        repeated: those that repeat a cast of the same tensor to the same type.
        constant: those that cast a weight or constant at every run.
        spared: those that could go, by one of these three or because nothing but moves lies between them.
    """

    total: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    in_a_row: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation(JsonSerializable):
    """What a graph's precision amounts to.

    Attributes:
        graph: the file.
        opset: the version of ONNX's operator set.
        made_by: the producer that the graph names.
        nodes: precision → number of nodes; `integer` touch no floating-point tensor.
        weights: stored type → its weights.
        blocks: in graph order.
        tensors: measured ones, in graph order; empty without calibration.
        masks, casts: see there.
        findings: the worst first.
        calibration: `source`, `file`, `sha256` and `texts` of what it was run on; None where it was not.
        notes: which examples nobody gave, and what followed from that.
    """

    graph: Path
    opset: int
    made_by: str
    nodes: Mapping[str, int]
    weights: Mapping[str, Weights]
    blocks: tuple[BlockSummary, ...]
    tensors: tuple[TensorSummary, ...]
    masks: tuple[Mask, ...]
    casts: Casts
    findings: tuple[Finding, ...]
    calibration: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()


def findings_about(
    kinds: Iterable[tuple[str, Sequence[str], str, str]], severity: Severity = "warning"
) -> list[Finding]:
    """A finding for each rule that concerns any node, at the first of them.

    Args:
        kinds: rule, names of the nodes that it concerns, sentence, advice.
    """
    return [
        Finding(severity, rule, nodes[0], sentence, advice, tuple(nodes))
        for rule, nodes, sentence, advice in kinds
        if nodes
    ]
