"""The answers that changed, with their texts and labels in words."""

from __future__ import annotations

from collections.abc import Sequence

from bertmp.export.parity.reading import ParityData
from bertmp.export.parity.result import FlipRow, StageReport
from bertmp.export.parity.stage_metrics import Flip
from bertmp.export.parity.tasks import UNKNOWN, TaskView


def flip_rows(row: StageReport, examples: ParityData) -> list[FlipRow]:
    """Every unit of a stage whose answer is not the reference's."""
    inputs, labels, found = examples.inputs, examples.classes, []
    for flip in row.measures.flips if row.measures else ():
        line, pairs = examples.examples.lines[flip.row], inputs.pairs
        text = inputs.texts[flip.row] + (f" ⏎ {pairs[flip.row]}" if pairs is not None else "")
        before, after = (_named(value, labels, inputs.view) for value in (flip.reference, flip.answer))
        found.append(FlipRow(row.name, line, text, _true_name(flip, examples), before, after, flip))
    return found


def _named(answer: int, classes: Sequence[str], view: TaskView) -> str:
    """An answer in words: the class, or the labels whose bits are set; a token's id without classes."""
    if view.kind == "multi-label":
        return ", ".join(name for place, name in enumerate(classes) if answer >> place & 1) or "none"
    return classes[answer] if view.output == "logits" else str(answer)


def _true_name(flip: Flip, examples: ParityData) -> str:
    """What is right of a unit; empty where nobody says."""
    truth, view = examples.inputs.truth, examples.inputs.view
    if truth is None:
        return ""
    if view.kind == "multi-label":
        marked = zip(examples.classes, truth[flip.unit], strict=True)
        return ", ".join(name for name, value in marked if value) or "none"
    known = int(truth[flip.unit])
    return "" if known == UNKNOWN else _named(known, examples.classes, view)
