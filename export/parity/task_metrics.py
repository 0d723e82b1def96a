"""The task's own metrics of a stage beside the reference's: values, intervals and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertmp.export.parity.stage import ParityInputs, StageOutput
from bertmp.export.parity.stage_metrics import answers_of
from bertmp.export.parity.tasks import UNKNOWN
from bertmp.metrics.comparison import MetricComparison, compare_metrics
from bertmp.metrics.spans import has_entity_tags, span_counts

RESAMPLES = 1000
_MANY = 20_000
"""With more texts, fewer samples are drawn: the interval is narrow, and each sample takes long."""


def compare_task_metrics(
    reference: StageOutput, output: StageOutput, inputs: ParityInputs, classes: Sequence[str]
) -> tuple[MetricComparison, ...]:
    """Every metric of the task; none where the right answers are not known.

    Args:
        classes: the model's, in the order of the logits.
    """
    truth, task = inputs.truth, inputs.view.task
    if truth is None or not len(truth):
        return ()
    resamples = RESAMPLES if len(truth) <= _MANY else RESAMPLES // 10
    if task == "token-classification":
        task = "entities" if has_entity_tags(classes) else task
        before, after = (_words(one, inputs, classes, task == "entities") for one in (reference, output))
    elif task in ("masked-lm", "pretraining"):
        task, (before, after) = "masked-lm", (_masked(one, inputs) for one in (reference, output))
    elif task == "regression":
        before, after = (
            (one.logits[:, 0].astype(np.float64), truth.astype(np.float64)) for one in (reference, output)
        )
    elif task == "multi-label-classification":
        before, after = ((one.logits > 0, truth > 0) for one in (reference, output))
    elif task == "classification":
        before, after = ((answers_of(one), truth) for one in (reference, output))
    else:
        return ()
    return compare_metrics(task, before, after, resamples=resamples)


def _words(
    output: StageOutput, inputs: ParityInputs, classes: Sequence[str], entities: bool
) -> tuple[np.ndarray, ...]:
    """Right and all words of each sentence, INT64 `[examples, 2]`, and the counts of its entities."""
    assert inputs.truth is not None
    units, answers = inputs.all_units, answers_of(output)
    known = inputs.truth != UNKNOWN
    examples = len(inputs.encoded)
    right = np.bincount(units.rows[known & (answers == inputs.truth)], minlength=examples)
    words = np.stack([right, np.bincount(units.rows[known], minlength=examples)], axis=1)
    if not entities:
        return (words,)
    starts = units.starts(examples)
    given, true = ([], [])
    for row in range(examples):
        part = slice(starts[row], starts[row + 1])
        labelled = known[part]
        given.append([classes[label] for label in answers[part][labelled]])
        true.append([classes[label] for label in inputs.truth[part][labelled]])
    return words, np.asarray(span_counts(given, true))


def _masked(output: StageOutput, inputs: ParityInputs) -> tuple[np.ndarray, ...]:
    """Of each text: right masked words, their summed loss, how many there are; FP64 `[examples, 3]`."""
    assert inputs.truth is not None
    rows, examples = inputs.all_units.rows, len(inputs.encoded)
    logits = output.logits.astype(np.float64)
    peak = logits.max(axis=1, keepdims=True)
    sums = peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=1))
    losses = sums - logits[np.arange(len(logits)), inputs.truth]
    right = (answers_of(output) == inputs.truth).astype(np.float64)
    columns = (right, losses, np.ones(len(logits)))
    return (np.stack([np.bincount(rows, column, examples) for column in columns], axis=1),)
