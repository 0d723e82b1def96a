"""What a model is asked so that its answers can be compared with each other: a few rows, in many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertmp.data.batches import pad_batch
from bertmp.data.tokenizer import Encoded

ROWS = 3
"""Different rows in a probe: few, as the check costs a share of parity's time."""
LENGTHS = (16, 64)
"""To what rows are padded, besides their own length and the model's longest."""
ODD, LONG = 33, 128
SOME, MANY = 5, 32
"""Batches of a graph: an odd one, which kernels treat apart, and the largest that is served."""

Size = tuple[int, int]
"""Batch and length of every input."""


@dataclass(frozen=True)
class Probe:
    """The rows.

    Attributes:
        rows: from the shortest to the longest, no two alike.
        names: what messages call each of them, e.g. `line 3`.
        pad_id: id of the padding token.
        max_length: the most tokens that the model takes.
    """

    rows: tuple[Encoded, ...]
    names: tuple[str, ...]
    pad_id: int
    max_length: int

    def at(self, length: int) -> tuple[Encoded, ...]:
        """The rows as they fit into `length`: longer ones are cut down to their middle."""
        return tuple(row if len(row) <= length else _middle(row, length) for row in self.rows)


def _middle(row: Encoded, length: int) -> Encoded:
    start = (len(row) - length) // 2
    part = slice(start, start + length)
    return Encoded(row.input_ids[part], row.token_type_ids[part], truncated=True)


def probe_of(encoded: Sequence[Encoded], names: Sequence[str], pad_id: int, max_length: int) -> Probe:
    """A probe of the shortest, the longest and the median of some examples.

    Args:
        encoded: at least one example.
        names: what messages call each.
    """
    # Hashes, since the ids of 100,000 examples as keys would take more memory than the examples.
    distinct = {hash((*row.input_ids, -1, *row.token_type_ids)): at for at, row in enumerate(encoded)}
    order = sorted(distinct.values(), key=lambda number: (len(encoded[number]), number))
    chosen = {order[round(share * (len(order) - 1))] for share in np.linspace(0, 1, ROWS)}
    picked = sorted(chosen, key=order.index)
    rows = [encoded[number] for number in picked]
    called = [names[number] for number in picked]
    if len(rows) == 1 and len(rows[0]) > 2:  # one row has no others beside it
        row = rows[0]
        ends = replace(row, input_ids=[row.input_ids[0], row.input_ids[-1]], token_type_ids=[0, 0])
        rows, called = [ends, row], [f"the first and last token of {called[0]}", *called]
    return Probe(tuple(rows), tuple(called), pad_id, max_length)


def random_probe(vocab_size: int, max_length: int) -> Probe:
    """A probe of random token ids, where there are no examples."""
    rng = np.random.default_rng(0)
    sizes = sorted({min(size, max_length) for size in (4, 11, 40)})
    rows = [
        Encoded(rng.integers(0, vocab_size, size).tolist(), [0] * size, truncated=False) for size in sizes
    ]
    names = [f"{size} random tokens" for size in sizes]
    return Probe(tuple(rows), tuple(names), pad_id=0, max_length=max_length)


def filled_batch(rows: Sequence[Encoded], pad_id: int, shape: Size) -> dict[str, np.ndarray]:
    """The graph's inputs for `rows`, INT64 `[batch, length]`, padded to `shape`.

    Rows that only fill the batch have one unmasked token, so that the softmax is defined.
    """
    batch = pad_batch(rows, pad_id, shape)
    batch["attention_mask"][len(rows) :, 0] = 1
    return batch


def graph_shapes(probe: Probe, max_batch: int = MANY) -> list[Size]:
    """The shapes at which a graph, which takes any, is asked.

    Every row at its own length, at 16, 64 and the longest; batches of 2, 3, 5, 8 and 32 rows, some of an odd
    length, one without padding, one long: kernels differ by shape. A large batch of long rows would take
    longer than all the rest.
    """
    longest = probe.max_length
    short, medium = (min(length, longest) for length in LENGTHS)
    batches = (
        *((MANY, short), (SOME, medium), (8, min(ODD, longest)), (3, min(len(probe.rows[0]), longest))),
        (2, min(LONG, longest)),
    )
    lengths = {*map(len, probe.rows), short, medium, longest, *(length for _, length in batches)}
    singles = [(1, length) for length in lengths if length <= longest]
    return sorted({*singles, *((min(batch, max_batch), length) for batch, length in batches)})


def profile_shapes(profiles: Sequence[tuple[Size, Size, Size]], probe: Probe) -> list[Size]:
    """The shapes at which an engine is asked: each profile's minimum, optimum and maximum.

    The smallest length is also asked in the largest batch. A batch's rows are asked by themselves, too, in
    the profile's smallest batch at the same length, and so is every row of the probe at its own length.

    Args:
        profiles: each its smallest, its tuned and its largest shape.
    """
    shapes: set[Size] = set()
    for smallest, tuned, largest in profiles:
        lengths = {shape[1] for shape in (smallest, tuned, largest)}
        lengths |= {len(row) for row in probe.rows if smallest[1] <= len(row) <= largest[1]}
        shapes |= {(tuned[0], tuned[1]), (largest[0], largest[1]), (largest[0], smallest[1])}
        shapes |= {(smallest[0], length) for length in lengths}
        # Between the ends: small batches, and a length that is no multiple of anything.
        between = (smallest[1] + largest[1]) // 2 // 2 * 2 + 1
        for batch in (2, 3):
            if smallest[0] <= batch <= largest[0] and between <= largest[1]:
                shapes.add((batch, between))
                shapes.add((smallest[0], between))
    return sorted(shapes)
