"""What a stage of the chain is to parity: texts in, logits out, or a reason why it was not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bertmp.data.tokenizer import Encoded


@dataclass(frozen=True)
class ParityInputs:
    """The texts that every stage answers, in one order.

    Attributes:
        texts: as in the data file.
        pairs: the second text of each row, or None.
        labels: the row's true class index, or None where the file is unlabelled.
        encoded: the same texts as token ids.
        pad_id: the token that fills short rows of a batch.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[int] | None
    encoded: Sequence[Encoded]
    pad_id: int = 0


@dataclass(frozen=True)
class StageOutput:
    """What a stage answered.

    Attributes:
        logits: FP32 `[texts, labels]`.
        probabilities: FP32 `[texts, labels]` where the stage gives them itself (a served model), else None.
        answers: the class indices that the stage itself gave (a served model), else None.
        details: what else is worth reporting, plain JSON values (versions, protocols, providers).
    """

    logits: np.ndarray
    probabilities: np.ndarray | None = None
    answers: np.ndarray | None = None
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class NotRun:
    """A stage that could not run here, and why; `verification` holds what was verified of it all the same."""

    reason: str
    verification: dict[str, object] = field(default_factory=dict)


class Stage(Protocol):
    """One link of the chain."""

    @property
    def name(self) -> str:
        """The stage's name in reports, e.g. `onnx-fp16`."""

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | NotRun:
        """Answers all texts, in their order; calls `advance(n)` after every n texts."""
