"""Checks that a model gives a row the same answer whatever else is in the batch.

Four things are compared, none of which needs a reference: rows that are identical within a batch, a batch
with its rows permuted, a row by itself with the same row in a batch, and a row padded to other lengths. An
engine may pass every comparison with its graph at batch 1 and mix up its rows in larger batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from bertmp.core.io import JsonSerializable
from bertmp.export.consistency.probe import Probe, Size, filled_batch
from bertmp.export.consistency.tolerance import Tolerance, distance

Outputs = Mapping[str, np.ndarray]
Run = Callable[[dict[str, np.ndarray]], Outputs]
"""A graph or an engine: its inputs by name, INT64 `[batch, length]` → its outputs by name, `[batch, …]`."""

Check = Literal["identical_rows", "permuted_rows", "single_row", "padding"]

_WORDS: Mapping[Check, str] = {
    "identical_rows": "identical rows of a batch get different answers",
    "permuted_rows": "a row's answer depends on its place in the batch",
    "single_row": "a row's answer in a batch is not the one that it gets by itself",
    "padding": "a row's answer depends on its padding",
}


@dataclass(frozen=True)
class CheckResult(JsonSerializable):
    """One check at one shape.

    Attributes:
        check: its name.
        shape: BATCHxLENGTH, or the number of texts.
        row: the name of the row with the largest difference.
        difference: how far apart its answers lie; infinite where one is not finite.
        bound: what is allowed.
        flips: how many answers have another label.
        passed: whether the difference is within the bound and no label changed.
    """

    check: Check
    shape: str
    row: str
    difference: float
    bound: float
    flips: int
    passed: bool

    def sentence(self) -> str:
        """What contradicts what."""
        changed = "a label changes" if self.flips == 1 else f"{self.flips} labels change"
        flips = f", and {changed}" if self.flips else ""
        figures = f"{self.difference:.3g} where {self.bound:.3g} is allowed{flips}"
        return f"{self.check} at {self.shape}: {_WORDS[self.check]} ({self.row}: {figures})"


@dataclass(frozen=True)
class Consistency(JsonSerializable):
    """All checks of one model.

    Attributes:
        results: one per check and shape; empty where the model takes a single row of a single length.
        bound_reason: where the bounds are from.
    """

    results: tuple[CheckResult, ...]
    bound_reason: str

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    @property
    def contradictions(self) -> tuple[CheckResult, ...]:
        """The checks that failed, the largest difference first."""
        failed = (result for result in self.results if not result.passed)
        return tuple(sorted(failed, key=lambda result: -result.difference / result.bound))

    @property
    def difference(self) -> float:
        """The largest difference of two answers to the same row; 0 where nothing was compared."""
        return max((result.difference for result in self.results), default=0.0)

    def sentence(self) -> str:
        """The verdict in words."""
        if not self.results:
            return "it takes one row of one length: nothing to compare"
        if failed := self.contradictions:
            names = {result.check for result in failed}
            first = [next(one for one in failed if one.check == check) for check in _WORDS if check in names]
            return f"it contradicts itself: {'; '.join(one.sentence() for one in first)}"
        compared = f"{len(self.results)} checks, largest difference {self.difference:.2g}"
        return f"the same row gets the same answer in every batch: {compared}"


def check_consistency(
    run: Run, probe: Probe, shapes: Sequence[Size], tolerance: Tolerance, labels: str = "logits"
) -> Consistency:
    """Asks a graph or an engine for the same rows in many arrangements and compares its answers.

    Args:
        run: answers a batch. Of outputs per token, `[batch, length, …]`, only the real positions of a row are
            compared.
        shapes: what it is asked at. A row by itself is asked in the smallest batch of its length.
        labels: the output whose largest value names the label; others have none.

    Returns:
        A result for every check that the shapes allow.
    """
    found = Comparison(probe.names, tolerance, labels)
    first: dict[int, Outputs] = {}  # each row's answer at the shortest length that holds it
    for length in sorted({length for _, length in shapes}):
        batches = sorted({batch for batch, other in shapes if other == length})
        rows, smallest = probe.at(length), batches[0]
        ask = partial(_ask, run, probe, length)
        alone = {
            number: ask([number], smallest)[0]
            for number, row in enumerate(probe.rows)
            # Without a batch to compare with, the shortest row has the most padding: it stands for all.
            if batches[-1] > 1 or len(row) == length or (number == 0 and len(row) < length)
        }
        for number, answer in alone.items():
            real = len(probe.rows[number])
            if real <= length and first.setdefault(number, answer) is not answer:
                found.add("padding", f"{smallest}x{length}", number, answer, first[number], real)
        for batch in batches:
            if batch > 1:
                reals = [len(row) for row in rows]
                compare_batch(partial(ask, size=batch), alone, batch, found, f"{batch}x{length}", reals)
    return found.result()


def _ask(run: Run, probe: Probe, length: int, numbers: Sequence[int], size: int) -> list[Outputs]:
    """The answers to some of the probe's rows, cut or padded to `length`, in one batch of `size`."""
    rows = probe.at(length)
    outputs = run(filled_batch([rows[number] for number in numbers], probe.pad_id, (size, length)))
    return split_rows(outputs, len(numbers))


def split_rows(outputs: Outputs, rows: int) -> list[Outputs]:
    """Outputs `[batch, …]` as one mapping for each of the first `rows`; copies, as buffers may be reused."""
    return [{name: np.array(value[row]) for name, value in outputs.items()} for row in range(rows)]


def compare_batch(
    ask: Callable[[Sequence[int]], Sequence[Outputs]],
    alone: Mapping[int, Outputs],
    batch: int,
    found: Comparison,
    where: str,
    reals: Sequence[int],
) -> None:
    """Asks for a batch and the same batch permuted, and compares row by row.

    Args:
        ask: row numbers → their answers, all from one batch.
        alone: the answer to each row by itself.
        found: takes the differences.
        where: the shape, for results.
        reals: how many tokens of each row are not padding.
    """
    rng = np.random.default_rng(batch)
    count = min(len(alone), batch)
    # Every row once, then any: in no order that a mix-up of rows could keep.
    numbers = rng.permutation([*range(count), *rng.integers(0, count, batch - count)])
    answers = ask(numbers.tolist())
    for number, answer in zip(numbers.tolist(), answers, strict=True):
        found.add("single_row", where, number, answer, alone[number], reals[number])
    if count > 1:
        order = rng.permutation(batch)
        while (numbers[order] == numbers).all():
            order = rng.permutation(batch)
        for place, answer in zip(order.tolist(), ask(numbers[order].tolist()), strict=True):
            number = int(numbers[place])
            found.add("permuted_rows", where, number, answer, answers[place], reals[number])
    if count == batch:  # no row came twice
        numbers = np.zeros(batch, np.int64)
        answers = ask(numbers.tolist())
    earlier: dict[int, Outputs] = {}
    for number, answer in zip(numbers.tolist(), answers, strict=True):
        if earlier.setdefault(number, answer) is not answer:
            found.add("identical_rows", where, number, answer, earlier[number], reals[number])


class Comparison:
    """Collects differences of answers, and keeps the largest for each check and shape.

    Args:
        names: what messages call each row.
        labels: the output whose largest value names the label.
    """

    def __init__(self, names: Sequence[str], tolerance: Tolerance, labels: str) -> None:
        self._names, self._tolerance, self._labels = names, tolerance, labels
        self._worst: dict[tuple[Check, str], CheckResult] = {}

    def add(self, check: Check, where: str, number: int, given: Outputs, wanted: Outputs, real: int) -> None:
        """Compares two answers to the row `number`, of which `real` tokens are not padding."""
        for name, value in wanted.items():
            left, right = _real_positions(given[name], value, real)
            if left.shape == right.shape:
                # Equal infinities, such as a class that is switched off, are equal.
                difference = float(np.where(left == right, 0.0, distance(left, right)).max(initial=0.0))
            else:
                difference = float("inf")
            finite = np.abs(right[np.isfinite(right)])
            bound = self._tolerance.bound(float(finite.max(initial=0.0)))
            flips = _flips(left, right, bound) if name == self._labels and left.shape == right.shape else 0
            passed = difference <= bound and not flips
            result = CheckResult(check, where, self._names[number], difference, bound, flips, passed)
            self._keep(result)

    def _keep(self, result: CheckResult) -> None:
        key = result.check, result.shape
        before = self._worst.get(key, result)
        worse = max(before, result, key=lambda one: (not one.passed, one.difference / one.bound))
        flips = result.flips + (before.flips if before is not result else 0)
        self._worst[key] = replace(worse, flips=flips)

    def result(self) -> Consistency:
        """All that was compared, in the order of the checks."""
        order: list[str] = list(_WORDS)
        results = sorted(self._worst.values(), key=lambda one: order.index(one.check))
        return Consistency(tuple(results), self._tolerance.reason)


def _real_positions(left: np.ndarray, right: np.ndarray, real: int) -> tuple[np.ndarray, np.ndarray]:
    """Two outputs for a row; of outputs per token, the part that is not padding."""
    per_token = left.ndim >= 2 or left.shape != right.shape
    return (left[:real], right[:real]) if per_token else (left, right)


def _flips(left: np.ndarray, right: np.ndarray, bound: float) -> int:
    """How many of the labels that two outputs `[…, labels]` name are others.

    Two labels whose logits lie closer than the bound are as good as equal: which comes first says nothing.
    """
    if left.ndim == 0 or left.shape[-1] < 2:
        return 0
    best = np.partition(right.astype(np.float64), -2, axis=-1)
    with np.errstate(invalid="ignore"):
        undecided = best[..., -1] - best[..., -2] <= bound
    return int(((left.argmax(axis=-1) != right.argmax(axis=-1)) & ~undecided).sum())
