"""What parity looks at for each task: which outputs, at which positions, and what the right answers are.

A unit is what gets an answer: a text for the heads that answer once per text, a word for token
classification, a masked token for a masked language model. Every stage gives the same units in the same
order, so that stages can be compared number by number whatever the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bertmp.data.tokenizer import Encoded

Kind = Literal["classes", "multi-label", "value", "vector"]
"""What an answer is: one of several classes, any of several labels, a number, or a vector."""

UNKNOWN = -100
"""The class of a unit that nobody labelled."""

FIRST = 0
"""The position of `[CLS]`."""

MASKED_SHARE = 0.15
"""Devlin et al., 2018, section 3.1."""
MOST_MASKED = 512
"""Masked tokens in all: each has as many numbers as the vocabulary has tokens."""
SAMPLED = 4
"""Positions of a text whose hidden states are compared, `[CLS]` among them."""


@dataclass(frozen=True)
class Units:
    """The units of all examples, in the examples' order.

    Attributes:
        rows: each unit's example, INT64 `[units]`.
        positions: each unit's token in it, INT64 `[units]`; None where an output has one row per example.
    """

    rows: np.ndarray
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def starts(self, examples: int) -> np.ndarray:
        """Where each example's units begin, INT64 `[examples + 1]`."""
        return np.searchsorted(self.rows, np.arange(examples + 1))


@dataclass(frozen=True)
class TaskView:
    """How a task's answers are compared.

    Attributes:
        task: as in the bundle, e.g. `token-classification`.
        kind: what an answer is.
        output: the graph's output that holds the answers.
        per_token: whether that output has a row per token, `[batch, length, width]`.
        others: further outputs, of one row per text, whose numbers are compared as well.
    """

    task: str
    kind: Kind
    output: str = "logits"
    per_token: bool = False
    others: Sequence[str] = field(default=())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every output that is compared, the one with the answers first."""
        return (self.output, *self.others)


VIEWS: Mapping[str, TaskView] = {
    view.task: view
    for view in (
        TaskView("classification", "classes"),
        TaskView("multi-label-classification", "multi-label"),
        TaskView("regression", "value"),
        TaskView("token-classification", "classes", per_token=True),
        TaskView("pretraining", "classes", "prediction_logits", True, ("seq_relationship_logits",)),
        TaskView("masked-lm", "classes", "prediction_logits", True),
        TaskView("next-sentence", "classes", "seq_relationship_logits"),
        TaskView("encoder", "vector", "last_hidden_state", True, ("pooler_output",)),
    )
}
"""Task → how it is compared."""


def units_of(view: TaskView, encoded: Sequence[Encoded], seed: int = 0) -> Units:
    """The units of the examples.

    A word's unit is its first token; a text that was not given as words has its own tokens as units, without
    `[CLS]` and `[SEP]`. Of hidden states a few positions are taken, `[CLS]` among them.
    """
    if not view.per_token:
        return Units(np.arange(len(encoded)))
    if view.kind == "vector":
        chosen = [_sampled(len(row), SAMPLED, seed + number) for number, row in enumerate(encoded)]
    elif view.task == "token-classification":
        chosen = [_words(row) for row in encoded]
    else:
        chosen = _masked(encoded, seed)
    rows = np.repeat(np.arange(len(encoded)), [len(places) for places in chosen])
    return Units(rows, np.concatenate(chosen) if chosen else np.zeros(0, np.int64))


def _words(row: Encoded) -> np.ndarray:
    places = list(row.first.values()) if row.first else list(range(1, len(row) - 1)) or [FIRST]
    return np.array(places, np.int64)


def _sampled(length: int, count: int, seed: int) -> np.ndarray:
    """`[CLS]` and some of the other positions."""
    others = np.random.default_rng(seed).permutation(np.arange(1, length))[: count - 1]
    return np.array([FIRST, *sorted(others)], np.int64)


def _masked(encoded: Sequence[Encoded], seed: int) -> list[np.ndarray]:
    """The positions that are masked: 15 % of a text's tokens, at least one, until there are enough."""
    rng, left, chosen = np.random.default_rng(seed), MOST_MASKED, []
    for row in encoded:
        inner = np.arange(1, len(row) - 1) if len(row) > 2 else np.array([FIRST])
        count = min(max(1, round(MASKED_SHARE * len(inner))), max(left, 0))
        chosen.append(np.sort(rng.permutation(inner)[:count]).astype(np.int64))
        left -= count
    return chosen


def mask_tokens(encoded: Sequence[Encoded], units: Units, mask_id: int) -> tuple[list[Encoded], np.ndarray]:
    """The examples with their units masked, and what stood there.

    Returns:
        The examples, and the original token of each unit, INT64 `[units]`.
    """
    assert units.positions is not None
    starts, masked, truths = units.starts(len(encoded)), [], []
    for number, row in enumerate(encoded):
        ids = list(row.input_ids)
        for place in units.positions[starts[number] : starts[number + 1]].tolist():
            truths.append(ids[place])
            ids[place] = mask_id
        masked.append(Encoded(ids, row.token_type_ids, row.truncated, row.first))
    return masked, np.array(truths, np.int64)


def gather(output: np.ndarray, rows: Sequence[int], units: Units, starts: np.ndarray) -> list[np.ndarray]:
    """The units' numbers in one batch.

    Args:
        output: FP32 `[batch, width]`, or `[batch, length, width]` for an output per token.
        rows: the examples of the batch.
        starts: see `Units.starts`.

    Returns:
        FP32 `[units of the example, width]` for each example.
    """
    if output.ndim == 2 or units.positions is None:
        return [output[place : place + 1] for place in range(len(rows))]
    return [output[place, units.positions[starts[row] : starts[row + 1]]] for place, row in enumerate(rows)]
