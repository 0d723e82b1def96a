"""What a stage answers to the adversarial inputs: held to the stage's own gates, input by input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bertmp.core.io import JsonSerializable
from bertmp.export.consistency.tolerance import FP32
from bertmp.export.parity.adversarial import PADDING_ROW, AdversarialInput, AdversarialSet
from bertmp.export.parity.gates import Evidence, Gate, Limits, decide
from bertmp.export.parity.stage import StageOutput
from bertmp.export.parity.stage_metrics import finite, measure
from bertmp.export.parity.tasks import Units

GATE = "adversarial"
"""The gate's name."""


@dataclass(frozen=True)
class Answered:
    """What one stage answered.

    Attributes:
        answers: the number of an input → its answer, of that input alone.
        failures: the number of an input → the error that a batch with it ended with.
        takes_empty: the empty texts that it answered where it should refuse them, as messages name them; None
            where it was not asked any.
        interrupted: whether it stopped answering; what is missing then was not asked.
        skipped: why it could not run at all; empty where it did.
        serves: the stage whose graph or engine a served model says that it runs; usually empty.
        seconds: wall time, loading included.
    """

    answers: Mapping[int, StageOutput] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)
    takes_empty: tuple[str, ...] | None = None
    interrupted: bool = False
    skipped: str = ""
    serves: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Failing:
    """An input that a stage fails on.

    Attributes:
        number: the input's.
        error: the largest error of its numbers; infinite where one is not finite or there are none.
        sentence: what is wrong.
    """

    number: int
    error: float
    sentence: str


@dataclass(frozen=True)
class KindRow(JsonSerializable):
    """One stage and one kind of input.

    Attributes:
        asked: how many were asked.
        max_error: the largest error; None where there was nothing to compare with, or it is not finite.
        failed: how many failed.
        worst: the input with the largest error, as messages name it.
        passed: whether none failed.
    """

    stage: str
    kind: str
    asked: int
    max_error: float | None
    failed: int
    worst: str
    passed: bool


@dataclass(frozen=True)
class Findings:
    """What was found of one stage.

    Attributes:
        rows: by kind, in the order of the inputs.
        failing: the inputs that it fails on, the worst first.
        gate: the decision.
    """

    rows: tuple[KindRow, ...]
    failing: tuple[Failing, ...]
    gate: Gate


@dataclass(frozen=True)
class StageAsked(JsonSerializable):
    """How much one stage was asked: `refuses_empty` is None for a stage that takes no texts."""

    stage: str
    asked: int
    seconds: float
    refuses_empty: bool | None


@dataclass(frozen=True)
class AdversarialReport(JsonSerializable):
    """What was found on the adversarial inputs.

    Attributes:
        seed: what they were made with.
        inputs: how many there are.
        reader_refuses_empty: whether the reader of data files refuses a text that is empty.
        stages: how many each stage was asked: served models take texts, graphs token ids as well.
        rows: by stage and kind.
    """

    seed: int
    inputs: int
    reader_refuses_empty: bool
    stages: tuple[StageAsked, ...]
    rows: tuple[KindRow, ...]

    def made(self) -> dict[str, int]:
        """What the manifest and the certificate keep of them."""
        return {"seed": self.seed, "inputs": self.inputs}


@dataclass(frozen=True)
class Yardstick:
    """What a stage's answers are held to.

    Attributes:
        limits: of the stage.
        answers: those that they are compared with, by input.
        itself: whether they are the stage's own: then only twins are compared, and as FP32 computes.
        allowance: the factor of the limits on absolute errors, see `StageMetrics`.
    """

    limits: Limits
    answers: Mapping[int, StageOutput]
    itself: bool = False
    allowance: float = 1.0


def split_answers(output: StageOutput, numbers: Sequence[int], units: Units) -> dict[int, StageOutput]:
    """A stage's output as one output for each example.

    Args:
        numbers: what to call each example.
        units: of the examples.
    """
    starts = units.starts(len(numbers))
    found = {}
    for place, number in enumerate(numbers):
        part = slice(starts[place], starts[place + 1])
        found[number] = StageOutput(
            output.logits[part],
            None if output.probabilities is None else output.probabilities[part],
            None if output.answers is None else output.answers[part],
            others={name: values[place : place + 1] for name, values in output.others.items()},
        )
    return found


def find(stage: str, answered: Answered, asked: AdversarialSet, held_to: Yardstick) -> Findings:
    """Decides on one stage."""
    errors: dict[int, float | None] = dict.fromkeys(answered.failures, float("inf"))
    failing = [Failing(number, float("inf"), why) for number, why in answered.failures.items()]
    for number, answer in answered.answers.items():
        error, broken = _judge(asked.inputs[number], number, answer, held_to, asked)
        errors[number] = error
        if broken:
            failing.append(Failing(number, error if error is not None else float("inf"), broken))
    failing.sort(key=lambda one: (-one.error, one.number))
    rows = _rows(stage, errors, {one.number for one in failing}, asked.inputs)
    return Findings(tuple(rows), tuple(failing), _gate(stage, answered, errors, failing, asked.inputs))


def _judge(
    row: AdversarialInput, number: int, answer: StageOutput, held_to: Yardstick, asked: AdversarialSet
) -> tuple[float | None, str]:
    """The largest error, None where nothing is compared, and what is wrong; empty where nothing is."""
    wanted = held_to.answers.get(number if row.twin is None else row.twin)
    compared = wanted is not None and row.kind != PADDING_ROW and (row.twin is not None or not held_to.itself)
    limits = replace(
        held_to.limits if compared else Limits(non_finite=held_to.limits.non_finite),
        **_NOT_OF_A_ROW,  # type: ignore[arg-type]
    )
    try:
        metrics = measure(wanted if compared and wanted else answer, answer, None, asked.template.view)
    except ValueError as error:
        return float("inf"), str(error)
    allowance = max(metrics.allowance, held_to.allowance)
    if compared and held_to.itself:
        limits = replace(limits, max_error=FP32.bound(metrics.scale) / allowance)
    gates = decide("", Evidence(replace(metrics, allowance=allowance)), limits)
    broken = "; ".join(gate.sentence for gate in gates if not gate.passed)
    if compared:
        return metrics.max_error, broken
    return (float("inf") if metrics.non_finite else None), broken


_NOT_OF_A_ROW = {"accuracy_points": None, "size_ratio": None, "verified": False, "consistent": False}


def _rows(
    stage: str, errors: Mapping[int, float | None], failing: set[int], inputs: Sequence[AdversarialInput]
) -> list[KindRow]:
    kinds: dict[str, list[int]] = {}
    for number in sorted(errors):
        kinds.setdefault(inputs[number].kind, []).append(number)
    found = []
    for kind, numbers in kinds.items():
        known = [number for number in numbers if errors[number] is not None]
        worst = max(known or numbers, key=lambda number: errors[number] or 0.0)
        largest, failed = errors[worst], len(failing.intersection(numbers))
        shown = None if largest is None else finite(largest)
        found.append(KindRow(stage, kind, len(numbers), shown, failed, inputs[worst].name(), not failed))
    return found


def _gate(
    stage: str,
    answered: Answered,
    errors: Mapping[int, float | None],
    failing: Sequence[Failing],
    inputs: Sequence[AdversarialInput],
) -> Gate:
    asked, parts = len(errors), []
    if failing:
        worst = inputs[failing[0].number]
        which = f"the worst is of the kind {worst.kind} ({worst.name()})"
        parts.append(f"{len(failing)} of {asked} adversarial inputs fail; {which}: {failing[0].sentence}")
    if answered.interrupted:
        parts.append("it stopped answering when it was asked the adversarial inputs")
    if answered.takes_empty:
        parts.append(
            f"it answers a text that is empty ({', '.join(answered.takes_empty)}) and should refuse it"
        )
    measured = len(failing) + answered.interrupted + len(answered.takes_empty or ())
    if not parts:
        compared = [error for error in errors.values() if error is not None]
        largest = f", largest error {max(compared):.3g}" if compared else ""
        parts.append(f"{asked} adversarial inputs{largest}")
    return Gate(stage, GATE, 0, measured, not measured, "; ".join(parts))


def allowance_of(answers: Mapping[int, StageOutput], asked: AdversarialSet) -> float:
    """The largest allowance of any input, see `StageMetrics`."""
    view = asked.template.view
    return max((measure(one, one, None, view).allowance for one in answers.values()), default=1.0)
