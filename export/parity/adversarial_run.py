"""Asks stages the adversarial inputs, and finds the input that a run ends on in an error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bertmp.core.errors import InputError
from bertmp.core.progress import ProgressCallback
from bertmp.data.readers import require_field
from bertmp.export.parity.adversarial import AdversarialSet
from bertmp.export.parity.adversarial_findings import (
    AdversarialReport,
    Answered,
    Findings,
    StageAsked,
    Yardstick,
    allowance_of,
    find,
    split_answers,
)
from bertmp.export.parity.gates import Limits, limits_in_role
from bertmp.export.parity.result import StageReport
from bertmp.export.parity.stage import EmptyTexts, Skipped, Stage, StageRun, run_all

EMPTY = ("", "  ", "\t\r\n")
"""What is no text: readers and servers refuse it."""


def ask(stage: Stage, asked: AdversarialSet, texts_only: bool, progress: ProgressCallback) -> Answered:
    """One stage's answers; an error in the midst of them is put down to the inputs that cause it.

    Args:
        texts_only: whether the stage takes texts and no token ids.
    """
    started = time.monotonic()

    def told(message: str, *figures: int | None) -> None:
        progress(f"{message}, adversarial inputs", *figures)

    answered = _ask(stage, asked, asked.asked(stage.name, texts_only), told)
    if texts_only and isinstance(stage, EmptyTexts) and not (answered.interrupted or answered.skipped):
        taken = tuple(ascii(text) for text in stage.answered_empty(EMPTY))
        answered = replace(answered, takes_empty=taken)
    return replace(answered, seconds=time.monotonic() - started)


def _ask(
    stage: Stage, asked: AdversarialSet, batches: Sequence[Sequence[int]], progress: ProgressCallback
) -> Answered:
    if not batches:
        return Answered()
    numbers, inputs = asked.at(batches)
    try:
        run = run_all([stage], inputs, progress)[stage.name]
    except InputError as error:  # a server's refusal of a text
        run = StageRun(stage.name, None, str(error), 0.0)
    answer = run.answer
    if run.interruption is not None:
        return Answered(interrupted=True)
    if isinstance(answer, Skipped):
        return Answered(skipped=answer.reason)
    if answer is not None:
        serves = str(answer.details.get("serves", ""))
        return Answered(split_answers(answer, numbers, inputs.all_units), serves=serves)
    if len(batches) == 1:
        return _ask_alone(stage, asked, numbers, run.failure, progress)
    middle = len(batches) // 2
    first = _ask(stage, asked, batches[:middle], progress)
    return first if first.interrupted else _joined(first, _ask(stage, asked, batches[middle:], progress))


def _ask_alone(
    stage: Stage, asked: AdversarialSet, numbers: Sequence[int], why: str, progress: ProgressCallback
) -> Answered:
    """Asks the rows of a batch that failed by themselves; where each is answered, the batch is at fault."""
    rows = [number for number in numbers if len(asked.inputs[number].encoded)]
    answered = Answered()
    for number in rows if len(numbers) > 1 else ():
        answered = _joined(answered, _ask(stage, asked, [[number]], progress))
    return answered if answered.failures else Answered(failures=dict.fromkeys(numbers, why))


def _joined(first: Answered, second: Answered) -> Answered:
    return Answered(
        {**first.answers, **second.answers},
        {**first.failures, **second.failures},
        interrupted=first.interrupted or second.interrupted,
        skipped=first.skipped or second.skipped,
        serves=first.serves or second.serves,
    )


def find_all(
    answered: Mapping[str, Answered],
    asked: AdversarialSet,
    limits: Mapping[str, Limits],
    reference: str,
    rows: Mapping[str, StageReport],
) -> dict[str, Findings]:
    """What was found of every stage that holds its answers to these inputs.

    Args:
        reference: the stage that all others are compared with.
        rows: what the stages answered to the user's examples, as far as they did.
    """
    found = {}
    for name, one in answered.items():
        row = rows.get(name)
        serves = row.serves if row is not None else one.serves
        wanted, as_served = limits_in_role(name, limits, is_reference=name == reference, serves=serves)
        if not wanted.adversarial or one.skipped:
            continue
        against = serves if as_served and serves in answered else reference
        answers = answered[against].answers if against in answered else {}
        measures = row.measures if row is not None else None
        allowance = max(allowance_of(answers, asked), measures.allowance if measures else 1.0)
        found[name] = find(name, one, asked, Yardstick(wanted, answers, name == reference, allowance))
    return found


def report_of(
    asked: AdversarialSet, answered: Mapping[str, Answered], found: Mapping[str, Findings]
) -> AdversarialReport:
    """The part of the report."""
    stages = tuple(
        StageAsked(
            name,
            len(one.answers) + len(one.failures),
            round(one.seconds, 3),
            None if one.takes_empty is None else not one.takes_empty,
        )
        for name, one in answered.items()
        if not one.skipped
    )
    rows = tuple(row for one in found.values() for row in one.rows)
    return AdversarialReport(asked.seed, len(asked.inputs), reader_refuses_empty(), stages, rows)


def reader_refuses_empty() -> bool:
    """Whether the reader of data files refuses every text that is empty."""

    def refused(text: str) -> bool:
        try:
            require_field({"text": text}, "text", "")
        except InputError:
            return True
        return False

    return all(map(refused, EMPTY))
