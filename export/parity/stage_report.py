"""What a stage answered, measured against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bertmp.export.bundle import LOW_GRAPHS
from bertmp.export.parity.as_planned import PlanCheck
from bertmp.export.parity.bundle_stages import ONNX_FP32
from bertmp.export.parity.gates import DEFAULTS, Evidence, decide
from bertmp.export.parity.reading import ParityData
from bertmp.export.parity.result import StageReport
from bertmp.export.parity.stage import Skipped, StageOutput, StageRun
from bertmp.export.parity.stage_metrics import measure
from bertmp.export.parity.task_metrics import compare_task_metrics
from bertmp.export.parity.weight_sizes import WeightSizes


def stage_report(
    ran: StageRun, answered: Mapping[str, StageOutput], reference: str, examples: ParityData
) -> StageReport:
    """Measures one stage; a stage whose answers cannot be compared has failed."""
    answer = ran.answer
    if isinstance(answer, Skipped):
        return StageReport(ran.name, "not run", answer.reason, verification=answer.verification)
    why = ran.failure or "there is no reference to compare with"
    failed = StageReport(ran.name, "failed", why, ran.seconds)
    if answer is not None:
        found = {name: getattr(answer, name) for name in ("consistency", "other_files", "answers_differ")}
        failed = replace(failed, **found)
    if answer is None or not reference:
        return failed
    labels = answer.details.get("labels")
    # A served model names its labels: the same in another order would be other answers.
    if isinstance(labels, (list, tuple)) and list(labels) != list(examples.classes):
        why = f"it serves the labels {', '.join(map(str, labels))}, not {', '.join(examples.classes)}"
        return replace(failed, reason=why)
    serves, inputs = _serves(answer, answered, reference), examples.inputs
    how = (inputs.truth, inputs.view, inputs.all_units)
    try:
        metrics = measure(answered[reference], answer, *how)
        served = measure(answered[serves], answer, *how) if serves in answered else None
    except ValueError as error:
        return replace(failed, reason=str(error))
    measured = replace(failed, reason="", measures=metrics, serves=serves, served=served)
    if ran.name != reference:
        compared = compare_task_metrics(answered[reference], answer, inputs, examples.classes)
        measured = replace(measured, task_metrics=compared)
    return replace(measured, status="reference" if ran.name == reference else "run", details=answer.details)


def with_sizes(row: StageReport, sizes: WeightSizes | None) -> StageReport:
    """The low-precision graph's row with the sizes of its weights, or why there is nothing to compare."""
    if sizes is None:
        return row
    if sizes.ratio is None:
        return replace(row, details={**row.details, "weights": "the plan keeps them all in FP32"})
    return replace(row, size_ratio=sizes.ratio)


def as_planned(row: StageReport, check: PlanCheck | None) -> StageReport:
    """The low-precision graph's row with what was found of its plan, or why that was not compared."""
    if check is None:
        return row
    if check.not_compared:
        return replace(row, plan_not_compared=check.not_compared)
    return replace(row, as_planned=check.difference)


def _serves(answer: StageOutput, answered: Mapping[str, StageOutput], reference: str) -> str:
    """The stage whose graph or engine a served model runs; empty for a stage that is not served.

    The stage says it where the server does (`serves` among its details). Where the server names neither a
    platform nor a file of one precision, it is the stage whose answers it repeats, else the FP32 graph.
    """
    if declared := str(answer.details.get("serves", "")):
        return declared
    if answer.answers is None and answer.probabilities is None:
        return ""
    graphs = [ONNX_FP32, *(f"onnx-{precision}" for precision in LOW_GRAPHS)]
    same = (name for name in graphs if name in answered and _repeats(answer, answered[name]))
    return next(same, ONNX_FP32 if ONNX_FP32 in answered else reference)


def _repeats(answer: StageOutput, graph: StageOutput) -> bool:
    try:
        found = measure(graph, answer, None)
    except ValueError:  # of another shape
        return False
    return all(gate.passed for gate in decide("", Evidence(found), DEFAULTS["triton"]))
