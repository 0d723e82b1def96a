"""Where a graph goes wrong: the first block and the first node whose error jumps.

A node's error jumps where it exceeds what its inputs' errors explain. So each node of the graph is run alone
on the reference's values (`side_by_side`); what it makes of them is its own error. It jumps where it is more
than `ROUNDINGS` roundings of the graph's 16-bit type, or, in a graph that is FP32 throughout, more than
`FP32_ROUNDINGS` of FP32: a node that does what the reference's does returns the same bits. The block that
jumps is that node's.

Where no node's own error jumps, several may be sound and the next one magnify what they did: FP16 scores of
300 are off by a tenth, and so is their exponential in FP32. Then the error grows, and the first node is named
whose error is above the limit several times and `GROWTH` times that of each of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, log10
from typing import Any

import numpy as np
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.io import JsonSerializable
from bertmp.export.graph.graph_index import GraphIndex
from bertmp.export.graph.nodes import blocks_of, input_names, name_of
from bertmp.export.graph.ort_sessions import Feed
from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.parity.keep_fp32 import KeepFp32, try_keeping_fp32
from bertmp.export.parity.side_by_side import PairErrors, SideBySide
from bertmp.export.parity.side_by_side_nodes import Pair
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.ranges import Progress

ROUNDINGS = 8
"""Sound nodes in 16 bits are off by up to about one rounding, relative to the norm of what they write."""

GROWTH = 8
_GROWN = 4
"""How many times the limit an error that grew must be."""

FP32_ROUNDINGS = 4
_FP32_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class BlockError:
    """The error of a block's hidden states.

    Attributes:
        block: e.g. `bert.encoder.layer.3`.
        relative_error: ‖found − FP32‖ / ‖FP32‖ of the graph as it is, the largest among the tensors that
            leave the block; infinite where one is not finite.
        snr_db: the signal-to-noise ratio that this is, in dB; infinite where nothing differs.
        own_error: the largest error of one of its nodes on the reference's values.
        headroom: the 16-bit type's largest number over the largest magnitude in FP32, masks' constants left
            out; FP16's for a graph that has no 16-bit type.
    """

    block: str
    relative_error: float
    snr_db: float
    own_error: float
    headroom: float


@dataclass(frozen=True)
class NodeError:
    """The first node whose error jumps.

    Attributes:
        node, op, block: which it is.
        type: of what it writes in the graph: `fp16`, `bf16` or `fp32`.
        own_error: its relative error on the reference's values.
        limit: above this, it jumps.
        relative_error: of the graph as it is, at this node.
        snr_db: of its own error; where the error grows, of the graph's.
        headroom: as in `BlockError`; None for a mask.
        at: the index of its worst element.
        expected, found: FP32's value there, and what the node makes of the reference's values; where the
            error grows, the graph's value.
        grows: whether the node itself is sound and magnifies what came before.
    """

    node: str
    op: str
    block: str
    type: str
    own_error: float
    limit: float
    relative_error: float
    snr_db: float
    headroom: float | None
    at: tuple[int, ...]
    expected: float
    found: float
    grows: bool = False


@dataclass(frozen=True)
class Localisation(JsonSerializable):
    """Where a graph leaves its reference.

    Attributes:
        blocks: every block's errors, in the order in which they end.
        block: the first whose error jumps; None where none does.
        node: the first node whose error jumps; None where none does.
        jumps: how many nodes' errors jump.
        texts: rows that were run.
        keep_fp32: for a fault of precision, which nodes in FP32 repair it, as tried.
    """

    blocks: tuple[BlockError, ...]
    block: str | None
    node: NodeError | None
    jumps: int
    texts: int
    keep_fp32: KeepFp32 | None = None

    def to_json(self) -> dict[str, Any]:
        """The attributes, the sentence, and the options that repair it as they are typed."""
        found = {**super().to_json(), "sentence": self.sentence}
        if self.keep_fp32 is not None:
            found["keep_fp32"]["line"] = self.keep_fp32.line
        return found

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if self.node is None:
            return "No node's error exceeds what its inputs' errors explain."
        node = self.node
        verb, error = ("grows", node.relative_error) if node.grows else ("jumps", node.own_error)
        where = f"{node.node} in {node.block or 'the graph'} ({node.op}, {node.type.upper()})"
        return (
            f"The error first {verb} at {where}: {node.found:.6g} instead of {node.expected:.6g}, "
            f"relative error {error:.2g} where {node.limit:.2g} is the limit."
        )


@dataclass(frozen=True)
class _Compared:
    """Both graphs after the run."""

    graph: SideBySide
    errors: PairErrors
    blocks: Mapping[str, str]
    limit: float
    jumping: tuple[int, ...] = field(default=())

    @property
    def largest_low(self) -> float:
        return (self.graph.low or LOW_TYPES["fp16"]).largest


def localise(
    reference: ModelProto,
    other: ModelProto,
    feeds: Sequence[Feed],
    *,
    source: str = "the examples",
    progress: Progress = lambda done, total: None,
) -> Localisation:
    """Compares a graph with its reference, block by block and node by node.

    Args:
        reference: the FP32 graph.
        other: a graph of the same model in any precision; its nodes have the same names.
        feeds: the graphs' inputs by name, a few rows each: one feed after the other is run. Some
            need padding, else a wrong mask does not show; rows that are all padding are left out.
        source: what the feeds are from, for messages.

    Raises:
        InputError: no feeds, or graphs that have too little in common or do not take them.
    """
    feeds = [kept for kept in map(_without_empty_rows, feeds) if len(next(iter(kept.values())))]
    if not feeds:
        raise InputError("no rows to compare the graphs on", source, "give at least one with a token")
    graph = SideBySide(reference, other)
    errors = graph.measure(feeds, source, progress)
    limit = ROUNDINGS * graph.low.roundoff if graph.low else FP32_ROUNDINGS * _FP32_ROUNDOFF
    jumping = tuple(np.flatnonzero(errors.own > limit).tolist())
    compared = _Compared(graph, errors, blocks_of(reference), limit, jumping)
    texts = sum(len(next(iter(feed.values()))) for feed in feeds)
    found = Localisation(_block_errors(compared), None, None, len(jumping), texts)
    growing = _growing(compared) if not jumping else None
    if not jumping and growing is None:
        return found
    first = jumping[0] if growing is None else growing
    worst = errors.worst_own if growing is None else errors.worst_whole
    feed = feeds[int(worst[first])]
    node = _node_error(compared, first, feed, source, grows=growing is not None)
    kept = None
    if graph.low is not None:
        wrong = [graph.pairs[number].node for number in jumping or (first,)]
        # A handful of conversions are tried: on the feed that shows the fault best, each is a short run.
        examples = Calibration([feed], [_mask(feed)], source, "", len(_mask(feed)))
        kept = try_keeping_fp32(reference, other, graph.low, wrong, compared.blocks, examples)
    return replace(found, block=node.block, node=node, keep_fp32=kept)


def _growing(compared: _Compared) -> int | None:
    """The first node that magnifies the error of what it reads, in a graph of which no node's error jumps."""
    pairs, errors = compared.graph.pairs, compared.errors
    whole = {pair.reference: float(error) for pair, error in zip(pairs, errors.whole, strict=True)}
    for number, pair in enumerate(pairs):
        producer = compared.graph.index.producer(pair.reference)
        assert producer is not None
        before = max((whole.get(name, 0.0) for name in input_names(producer)), default=0.0)
        if whole[pair.reference] > max(_GROWN * compared.limit, GROWTH * before):
            return number
    return None


def _without_empty_rows(feed: Feed) -> Feed:
    """The feed without rows that are all padding: their softmax is over masked scores alone, and it is the
    rounding of the mask's constant that decides it."""
    rows = _mask(feed).any(axis=1)
    return feed if rows.all() else {name: values[rows] for name, values in feed.items()}


def _mask(feed: Feed) -> np.ndarray:
    values = feed["attention_mask"] if "attention_mask" in feed else np.ones_like(next(iter(feed.values())))
    return np.asarray(values) != 0


def _block_errors(compared: _Compared) -> tuple[BlockError, ...]:
    members = members_of_blocks(compared.graph.pairs, compared.blocks)
    return tuple(_block_error(block, numbers, compared) for block, numbers in members.items())


def members_of_blocks(pairs: Sequence[Pair], blocks: Mapping[str, str]) -> dict[str, list[int]]:
    """Block → the places of its pairs; the blocks in the order in which they end."""
    members: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        block = blocks[pair.node]
        members[block] = [*members.pop(block, ()), number]  # a block stands where its last node stands
    return members


def _block_error(block: str, numbers: Sequence[int], compared: _Compared) -> BlockError:
    pairs, errors = compared.graph.pairs, compared.errors
    index = compared.graph.index
    leaving = [number for number in numbers if leaves(pairs[number], index, compared.blocks)] or numbers
    error = max(float(errors.whole[number]) for number in leaving)
    largest = max((float(errors.largest[n]) for n in numbers if not pairs[n].masked), default=0.0)
    own = max(float(errors.own[number]) for number in numbers)
    return BlockError(block, error, _decibels(error), own, compared.largest_low / largest if largest else inf)


def leaves(pair: Pair, index: GraphIndex, blocks: Mapping[str, str]) -> bool:
    """Whether another block reads the tensor, or it is an output of the graph.

    Args:
        index: the reference.
        blocks: node name → block.
    """
    readers = index.readers(pair.reference)
    return pair.reference in index.outputs or any(
        blocks[name_of(one)] != blocks[pair.node] for one in readers
    )


def _node_error(compared: _Compared, number: int, feed: Feed, source: str, *, grows: bool) -> NodeError:
    pair, errors = compared.graph.pairs[number], compared.errors
    expected, found = compared.graph.values(pair, feed, source, alone=not grows)
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected)
    difference[np.isnan(difference)] = inf
    at = np.unravel_index(int(difference.argmax()), difference.shape)
    own, largest = float(errors.own[number]), float(errors.largest[number])
    return NodeError(
        node=pair.node,
        op=pair.op,
        block=compared.blocks[pair.node],
        type=pair.low.name if pair.low else "fp32",
        own_error=own,
        limit=compared.limit,
        relative_error=float(errors.whole[number]),
        snr_db=_decibels(float(errors.whole[number]) if grows else own),
        headroom=None if pair.masked else compared.largest_low / largest if largest else inf,
        at=tuple(int(axis) for axis in at),
        expected=float(expected[at]),
        found=float(found[at]),
        grows=grows,
    )


def _decibels(error: float) -> float:
    """The signal-to-noise ratio of a relative error."""
    return inf if error == 0 else -inf if error == inf else -20 * log10(error)
