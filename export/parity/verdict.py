"""The verdict on a bundle: passed, failed, or incomplete where something was not checked that counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from bertmp.core.errors import InputError

Verdict = Literal["passed", "failed", "incomplete"]

SERVED = ("triton", "triton-grpc", "triton-http")
"""The names that a served model's stage may have."""


@dataclass(frozen=True)
class Unchecked:
    """A stage that was not checked although it counts.

    Attributes:
        stage: its name.
        reason: why it was not checked.
        allowed: whether the user said that the verdict does not wait for it (`--allow-incomplete`).
    """

    stage: str
    reason: str
    allowed: bool = False

    def sentence(self) -> str:
        """`engine was not checked: no NVIDIA GPU`."""
        return f"{self.stage} was not checked: {self.reason}"


def find_unchecked(
    not_run: Iterable[tuple[str, str]],
    counting: Collection[str],
    required: Collection[str],
    allowed: Collection[str],
) -> tuple[Unchecked, ...]:
    """The stages whose absence makes a verdict incomplete.

    Args:
        not_run: name and reason of every stage that did not run.
        counting: the stages whose answers would be shipped, or were asked for.
        required: those that the user requires; one that is no part of this run counts as well.
        allowed: those that the verdict does not wait for.
    """
    reasons = dict(not_run)
    return tuple(
        Unchecked(name, reason, name in allowed)
        for name, reason in reasons.items()
        if name in counting or name in required
    )


def decide_verdict(reference: str, gates_passed: bool, unchecked: Iterable[Unchecked]) -> Verdict:
    """Failed outranks incomplete.

    Args:
        reference: the stage that all others were compared with; empty where none answered.
    """
    if not reference or not gates_passed:
        return "failed"
    return "incomplete" if any(not one.allowed for one in unchecked) else "passed"


def check_stage_names(names: Iterable[str], known: Collection[str], option: str) -> None:
    """Checks the stages that an option names.

    Args:
        known: the stages of this run; a served model's may be named without a server.

    Raises:
        InputError: there is no such stage.
    """
    for name in names:
        if name not in known and name not in SERVED:
            raise InputError(
                f"unknown stage '{name}'", option, f"use one of {', '.join(known)} or {SERVED[0]}"
            )
