"""The error of the low-precision graph block by block and length by length, on a few of the examples.

The graph's 16-bit tensors are emulated (`side_by_side`); the hidden states that leave a block are compared
with the FP32 graph's. A sample is run, spread over the lengths, so that this takes a small part of the time
of the stages, which answer all examples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import inf
from typing import Any

import numpy as np

from bertmp.core.errors import short_message
from bertmp.core.progress import ProgressCallback
from bertmp.export.bundle import FP32_GRAPH, Bundle
from bertmp.export.graph.loading import load_graph
from bertmp.export.graph.nodes import blocks_of
from bertmp.export.graph.ort_sessions import Feed
from bertmp.export.graph.types import LOW_TYPES
from bertmp.export.parity.localise import leaves, members_of_blocks
from bertmp.export.parity.localise_stage import padded_feeds
from bertmp.export.parity.side_by_side import End, SideBySide
from bertmp.export.parity.side_by_side_nodes import Pair
from bertmp.export.parity.stage import ParityInputs
from bertmp.export.parity.stage_metrics import finite

TEXTS = 64
"""The most examples that are run."""

_TOKENS = (512, 2048)
"""The tokens that are run: a sixteenth of all, but not fewer and not more than this."""

_BINS = (8, 16, 32, 64, 128, 256, 512)
"""The longest length, in tokens, of each group of examples; longer ones are a group of their own."""


@dataclass(frozen=True)
class LengthBin:
    """Examples of similar length.

    Attributes:
        shortest, longest: the group's limits, in tokens; `longest` is None for the group without one.
        texts: how many were run.
    """

    shortest: int
    longest: int | None
    texts: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def words(self) -> str:
        """The limits as people write them."""
        return f"{self.shortest}–{self.longest}" if self.longest else f"{self.shortest}+"  # noqa: RUF001


@dataclass(frozen=True)
class BlockErrors:
    """The low-precision graph against the FP32 graph, over blocks and lengths.

    Attributes:
        reason: why nothing was measured; empty where it was.
        precision: `fp16` or `bf16`.
        blocks: e.g. `bert.encoder.layer.3`, in the order in which they end.
        bins: the groups of examples, from short to long.
        errors: ‖found − FP32‖ / ‖FP32‖ of the hidden states that leave a block, the largest of its tensors,
            FP64 `[blocks, bins]`; infinite where a number is not finite.
        headroom: of each block, the 16-bit type's largest number over the largest magnitude in FP32, masks'
            constants left out, FP64 `[blocks]`; infinite where all is zero.
        seconds: wall time.
    """

    reason: str
    precision: str = ""
    blocks: tuple[str, ...] = ()
    bins: tuple[LengthBin, ...] = ()
    errors: tuple[tuple[float, ...], ...] = ()
    headroom: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def texts(self) -> int:
        """How many examples were run."""
        return sum(one.texts for one in self.bins)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite is null."""
        return {
            "reason": self.reason,
            "precision": self.precision,
            "blocks": list(self.blocks),
            "bins": [one.to_json() for one in self.bins],
            "errors": [[finite(error) for error in row] for row in self.errors],
            "headroom": [finite(value) for value in self.headroom],
            "seconds": round(self.seconds, 3),
        }


def measure_block_errors(bundle: Bundle, inputs: ParityInputs, progress: ProgressCallback) -> BlockErrors:
    """Compares the bundle's two graphs on a sample of the examples; a graph that cannot be is said why."""
    if bundle.low_graph is None:
        return BlockErrors("the bundle has no low-precision graph")
    started = time.monotonic()
    try:
        found = _measure(bundle, inputs, progress)
    except MemoryError:
        raise
    except Exception as error:  # a graph of another structure; parity's verdict does not depend on this
        return BlockErrors(f"the graphs cannot be compared: {short_message(error)}", bundle.low_precision)
    return BlockErrors(**{**vars(found), "seconds": time.monotonic() - started})


def _measure(bundle: Bundle, inputs: ParityInputs, progress: ProgressCallback) -> BlockErrors:
    assert bundle.low_graph is not None
    chosen = sample_by_length([len(encoded) for encoded in inputs.encoded])
    feeds, groups = _feeds(inputs, chosen, bundle.max_positions)
    reference = load_graph(bundle.folder / FP32_GRAPH)
    graph = SideBySide(reference, load_graph(bundle.folder / bundle.low_graph))
    names = blocks_of(reference)
    members = members_of_blocks(graph.pairs, names)
    leaving = [
        [at for at in places if leaves(graph.pairs[at], graph.index, names)] or places
        for places in members.values()
    ]
    ends = [at for places in leaving for at in places]
    ranged = [at for at, pair in enumerate(graph.pairs) if not pair.masked]
    wanted: list[tuple[Pair, End]] = [(graph.pairs[at], "reference") for at in ends]
    wanted += [(graph.pairs[at], "whole") for at in ends]
    wanted += [(graph.pairs[at], "largest") for at in ranged]
    what = "error by block, batch"
    found = graph.read(wanted, feeds, "the examples", lambda done, total: progress(what, done, total))
    norms, errors, sizes = np.split(found, [len(ends), 2 * len(ends)], axis=1)
    relative = dict(zip(ends, _relative(norms, errors, groups, len(chosen)), strict=True))
    largest = dict(zip(ranged, sizes.max(axis=0), strict=True))
    top = LOW_TYPES[bundle.low_precision].largest
    return BlockErrors(
        reason="",
        precision=bundle.low_precision,
        blocks=tuple(members),
        bins=tuple(LengthBin(*limits, len(rows)) for limits, rows in chosen.items()),
        errors=tuple(tuple(np.max([relative[at] for at in places], axis=0).tolist()) for places in leaving),
        headroom=tuple(
            _headroom(top, [largest[at] for at in places if at in largest]) for places in members.values()
        ),
    )


def sample_by_length(lengths: Sequence[int], texts: int = TEXTS) -> dict[tuple[int, int | None], list[int]]:
    """Some of the examples, in turn from every group of lengths, so that each group has about as many.

    Args:
        lengths: tokens of each example.
        texts: the most examples; each group has one at least.

    Returns:
        The limits of each group that has examples → their rows.
    """
    groups: dict[tuple[int, int | None], list[int]] = {}
    for shortest, longest in zip((1, *(end + 1 for end in _BINS)), (*_BINS, None), strict=True):
        rows = [row for row, length in enumerate(lengths) if shortest <= length <= (longest or inf)]
        if rows:
            groups[shortest, longest] = np.random.default_rng(0).permutation(rows)[:texts].tolist()
    least, most = _TOKENS
    left = min(max(sum(lengths) // 16, least), most)
    kept: dict[tuple[int, int | None], list[int]] = {limits: [] for limits in groups}
    for turn in zip_longest(*groups.values()):
        for limits, row in zip(groups, turn, strict=True):
            fits = lengths[row] <= left and sum(map(len, kept.values())) < texts if row is not None else False
            if row is not None and (fits or not kept[limits]):
                kept[limits].append(row)
                left -= lengths[row]
    return kept


def _feeds(
    inputs: ParityInputs, chosen: Mapping[Any, Sequence[int]], longest: int
) -> tuple[list[Feed], np.ndarray]:
    """The batches, none of two groups, and the group of each, INT64 `[feeds]`."""
    feeds, groups = [], []
    for number, rows in enumerate(chosen.values()):
        batches = padded_feeds(inputs, rows, longest)
        feeds += batches
        groups += [number] * len(batches)
    return feeds, np.array(groups)


def _relative(norms: np.ndarray, errors: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """√(error / norm) of each group, FP64 `[tensors, groups]`; infinite where it is not a number."""
    sums = [[values[groups == group].sum(axis=0) for group in range(count)] for values in (norms, errors)]
    norm, error = np.array(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(error == 0, 0.0, np.sqrt(error / norm))
    return np.asarray(np.where(np.isnan(found), inf, found).T)


def _headroom(top: float, sizes: Sequence[float]) -> float:
    largest = max(sizes, default=0.0)
    return top / largest if largest else inf
