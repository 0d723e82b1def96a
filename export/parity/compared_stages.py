"""The stages after their run: measured, asked the adversarial inputs, decided, and where they go wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertmp.core.errors import short_message
from bertmp.export.bundle import Bundle
from bertmp.export.parity.adversarial import AdversarialSet, adversarial_inputs
from bertmp.export.parity.adversarial_findings import GATE, Findings
from bertmp.export.parity.adversarial_run import Answered, ask, find_all
from bertmp.export.parity.as_exported import check_as_exported
from bertmp.export.parity.as_planned import check_as_planned
from bertmp.export.parity.bundle_stages import ONNX_FP32, low_stage
from bertmp.export.parity.cpu_bf16_stage import CPU_BF16
from bertmp.export.parity.gates import Evidence, Gate, Limits, decide, limits_in_role
from bertmp.export.parity.localise_stage import localise_stage
from bertmp.export.parity.parity_options import ParityOptions
from bertmp.export.parity.reading import ParityData
from bertmp.export.parity.result import StageReport
from bertmp.export.parity.stage import ParityInputs, Stage, StageOutput, StageRun
from bertmp.export.parity.stage_report import as_planned, stage_report, with_sizes
from bertmp.export.parity.torch_stages import TORCH, TORCH_AMP, TorchStage
from bertmp.export.parity.weight_sizes import weight_sizes


@dataclass(frozen=True)
class Compared:
    """The stages after they were compared.

    Attributes:
        reference: the checkpoint's stage, else the FP32 graph's; empty where neither answered.
        rows: one for each stage, in the chain's order.
        gates: stage → its decisions.
        answered: stage → what it answered, for those that did.
        adversarial, adversarial_answers, findings: the inputs made for the model, and what came of them.
    """

    reference: str
    rows: tuple[StageReport, ...]
    gates: Mapping[str, tuple[Gate, ...]]
    answered: Mapping[str, StageOutput]
    adversarial: AdversarialSet
    adversarial_answers: Mapping[str, Answered]
    findings: Mapping[str, Findings]

    @property
    def names(self) -> list[str]:
        """The stages whose answers could be compared, the reference among them."""
        return [row.name for row in self.rows if row.status in ("reference", "run")]


def compare_stages(
    bundle: Bundle,
    stages: Sequence[Stage],
    ran: Mapping[str, StageRun],
    examples: ParityData,
    limits: Mapping[str, Limits],
    options: ParityOptions,
) -> Compared:
    """Measures every stage, asks it the adversarial inputs, decides its gates, and finds what goes wrong."""
    answered = {name: run.answer for name, run in ran.items() if isinstance(run.answer, StageOutput)}
    reference = next((name for name in (TORCH, ONNX_FP32) if name in answered), "")
    reports = {stage.name: stage_report(ran[stage.name], answered, reference, examples) for stage in stages}
    low = low_stage(bundle)
    options.progress("applying the precision plan again")
    reports[low] = as_planned(with_sizes(reports[low], weight_sizes(bundle)), check_as_planned(bundle))
    if reference == TORCH:
        options.progress("comparing the bundle with its checkpoint")
        checkpoint = next(stage for stage in stages if isinstance(stage, TorchStage)).folder
        assert checkpoint is not None
        files, weights = check_as_exported(bundle, checkpoint)
        reports[TORCH] = replace(reports[TORCH], as_exported=files)
        reports[ONNX_FP32] = replace(reports[ONNX_FP32], as_exported=weights)
    made = adversarial_inputs(bundle, examples.inputs.pairs is not None, options.seed)
    answers = {
        stage.name: ask(stage, made, stage in options.extra_stages, options.progress)
        for stage in stages
        if stage.name in answered
    }
    found = find_all(answers, made, limits, reference, reports)
    of_adversarial = {name: (one.gate,) for name, one in found.items()}
    gates = {name: (*_gates(row, limits), *of_adversarial.get(name, ())) for name, row in reports.items()}
    if CPU_BF16 in gates and CPU_BF16 not in options.require:
        gates[CPU_BF16] = tuple(replace(gate, counts=False) for gate in gates[CPU_BF16])
    reports.update(_localised(bundle, reports, gates, options, examples.inputs, (made, found)))
    return Compared(reference, tuple(reports.values()), gates, answered, made, answers, found)


_OF_ERRORS = (
    "max_error",
    "max_probability_error",
    "flips",
    "unexplained_flips",
    "non_finite",
    "accuracy_points",
    "as_planned",
)
"""Gates that fail where answers are off."""


def _localised(
    bundle: Bundle,
    reports: Mapping[str, StageReport],
    gates: Mapping[str, Sequence[Gate]],
    options: ParityOptions,
    inputs: ParityInputs,
    adversarial: tuple[AdversarialSet, Mapping[str, Findings]],
) -> dict[str, StageReport]:
    """The first stage whose answers are off, with where in the graph that begins."""
    asked, findings = adversarial
    for name, row in reports.items():
        failed = {gate.name for gate in gates[name] if not gate.passed}
        # No graph is made from what torch computes under autocast.
        if row.measures is None or row.status != "run" or name == TORCH_AMP:
            continue
        off = failed.intersection(_OF_ERRORS)
        if GATE in failed and off <= {"as_planned"}:  # no example shows it
            rows, worst = asked.at(asked.batches)[1], [one.number for one in findings[name].failing]
        elif off:
            units = np.argsort(-row.measures.row_errors, kind="stable")
            rows, worst = inputs, list(dict.fromkeys(inputs.all_units.rows[units].tolist()))
        else:
            continue
        try:
            found = localise_stage(bundle, name, rows, worst, options.progress, options.checkpoint)
        except MemoryError:
            raise
        except Exception as error:  # a graph of another structure; the failure is reported all the same
            details = {**row.details, "where it goes wrong": f"not found: {short_message(error)}"}
            return {name: replace(row, details=details)}
        return {name: replace(row, localisation=found)}
    return {}


def _gates(row: StageReport, limits: Mapping[str, Limits]) -> tuple[Gate, ...]:
    wanted, as_served = limits_in_role(
        row.name, limits, is_reference=row.status == "reference", serves=row.serves
    )
    metrics = row.served if as_served and row.served else row.measures
    failure = row.reason if row.status == "failed" else ""
    verified = bool(row.verification.get("verified")) if row.verification else None
    seen = (row.size_ratio, verified, row.consistency, row.other_files, row.as_planned, row.as_exported)
    evidence = Evidence(metrics, failure, *seen, answers_differ=row.answers_differ)
    return decide(row.name, evidence, wanted)
