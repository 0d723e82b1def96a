"""`bertmp parity`: runs the chain, measures every stage, decides its gates, writes the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np

from bertmp.core.errors import InputError, short_message
from bertmp.core.hardware import nvidia_driver
from bertmp.core.io import sha256_file
from bertmp.core.options import keywords_of
from bertmp.core.progress import Notice
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, FP32_GRAPH, NETWORK, PARITY, PLAN, Bundle
from bertmp.export.parity.adversarial import AdversarialSet, adversarial_inputs
from bertmp.export.parity.adversarial_findings import GATE, Findings
from bertmp.export.parity.adversarial_run import ask, find_all, report_of
from bertmp.export.parity.as_planned import check_as_planned
from bertmp.export.parity.block_errors import measure_block_errors
from bertmp.export.parity.bundle_stages import ONNX_FP32, chain, emulated_stage, low_stage
from bertmp.export.parity.bundle_summary import summarise_bundle
from bertmp.export.parity.certificate import CERTIFICATE, make_certificate
from bertmp.export.parity.confusion import confusion_of
from bertmp.export.parity.failing_inputs import failed_batches, failed_examples, save_failing
from bertmp.export.parity.flip_rows import flip_rows
from bertmp.export.parity.gates import (
    Evidence,
    Gate,
    Limits,
    decide,
    limits_in_role,
    read_limits,
)
from bertmp.export.parity.localise_stage import localise_stage
from bertmp.export.parity.model_card import model_card
from bertmp.export.parity.parity_options import ParityOptions
from bertmp.export.parity.reading import read_inputs
from bertmp.export.parity.report import FILES, environment, write_report
from bertmp.export.parity.result import (
    DataSummary,
    ParityReport,
    StageReport,
)
from bertmp.export.parity.signature import SIGNATURE, Signer, does_not_ship
from bertmp.export.parity.stage import ParityInputs, Skipped, StageOutput, StageRun, run_all
from bertmp.export.parity.stage_report import as_planned, stage_report, with_sizes
from bertmp.export.parity.torch_stages import TORCH, TORCH_AMP
from bertmp.export.parity.verdict import check_stage_names, find_unchecked
from bertmp.export.parity.weight_sizes import weight_sizes

DEFAULT_FOLDER = "parity"


@keywords_of(ParityOptions)
def parity(options: ParityOptions) -> ParityReport:
    """Compares every stage of a bundle with its FP32 checkpoint on the examples of `data`.

    Writes `report.html`, `report.json`, `junit.xml`, `MODEL_CARD.md`, `certificate.json` (into the bundle as
    well) and the manifest's entry `parity`, whether the gates pass or not; an error or an interruption leaves
    all as they were. With `sign`, the bundle is signed last, unless the verdict is failed.

    Raises:
        InputError: a bad or stale bundle, bad data, a stage that does not exist, or a server that stopped
            answering midway (the report is written before that is raised).
        MissingComponent: ONNX Runtime, or model-signing for `sign`, is not installed.
    """
    started = time.monotonic()
    opened = Bundle.open(options.bundle)
    folder = options.report or opened.folder / DEFAULT_FOLDER
    if folder.exists() and not folder.is_dir():
        raise InputError("not a folder", folder, "name another folder with --report")
    limits = read_limits(options.gates, opened.low_precision)
    signer = None if options.sign is None else Signer(options.sign, opened.folder)
    own = chain(opened, options.checkpoint)
    stages = (*own, *options.extra_stages)
    names = [stage.name for stage in stages]
    check_stage_names(options.require, names, "--require")
    check_stage_names(options.allow_incomplete, names, "--allow-incomplete")
    columns = options.columns(options.label_column, options.label_separator)
    contents = summarise_bundle(opened)
    examples = read_inputs(opened, options.data, columns, options.progress)
    # Served stages go first: a server that is not there shows before the long part.
    ran = run_all((*options.extra_stages, *own), examples.inputs, options.progress)
    answered = {name: run.answer for name, run in ran.items() if isinstance(run.answer, StageOutput)}
    # The checkpoint, else the FP32 graph; empty where neither answered.
    reference = next((name for name in (TORCH, ONNX_FP32) if name in answered), "")
    reports = {stage.name: stage_report(ran[stage.name], answered, reference, examples) for stage in stages}
    low = low_stage(opened)
    options.progress("applying the plan again")
    reports[low] = as_planned(with_sizes(reports[low], weight_sizes(opened)), check_as_planned(opened))
    asked = adversarial_inputs(opened, examples.inputs.pairs is not None, options.seed)
    answers = {
        stage.name: ask(stage, asked, stage in options.extra_stages, options.progress)
        for stage in stages
        if stage.name in answered
    }
    found = find_all(answers, asked, limits, reference, reports)
    of_adversarial = {name: (one.gate,) for name, one in found.items()}
    gates = {name: (*_gates(row, limits), *of_adversarial.get(name, ())) for name, row in reports.items()}
    reports.update(_localised(opened, reports, gates, options, examples.inputs, (asked, found)))
    rows, source = tuple(reports.values()), examples.examples.source
    compared = [row.name for row in rows if row.status in ("reference", "run")]
    not_run = [(row.name, row.reason) for row in rows if row.status == "not run"]
    not_run += [(name, "no --server was given") for name in options.require if name not in reports]
    counting = _counting(opened, [stage.name for stage in options.extra_stages])
    truncated = sum(encoded.truncated for encoded in examples.inputs.encoded)
    labelled, texts = examples.inputs.truth is not None, len(examples.inputs.texts)
    result = ParityReport(
        bundle=opened.folder,
        folder=folder,
        reference=reference,
        note=" ".join(filter(None, [_note(ran, reference), examples.note])),
        data=DataSummary(
            source, sha256_file(source), texts, labelled, truncated, examples.inputs.pairs is not None
        ),
        stages=rows,
        gates=tuple(gate for row in rows for gate in gates[row.name]),
        unchecked=find_unchecked(not_run, counting, options.require, options.allow_incomplete),
        flips=tuple(flip for row in rows for flip in flip_rows(row, examples)),
        contents=contents,
        block_errors=measure_block_errors(opened, examples.inputs, options.progress),
        confusion=confusion_of(answered, compared, examples.inputs, examples.classes),
        environment=environment(),
        seconds=time.monotonic() - started,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        adversarial=report_of(asked, answers, found),
    )
    write_report(result, make_certificate(opened, result, nvidia_driver()), model_card(opened, result))
    failed, left_out = failed_examples(rows, gates, examples)
    failed = [*failed_batches(asked, found), *failed]
    save_failing(folder, opened.task, options.seed, failed, left_out, examples.inputs.pad_id)
    _record(opened, result, limits)
    for run in ran.values():
        if run.interruption is not None:
            todo = f"start it again; the report of the other stages is {folder / 'report.html'}"
            raise InputError(run.interruption.what, run.interruption.where, todo) from run.interruption
    if signer is not None and result.verdict == "failed":
        options.progress(Notice("not signed: the verdict is failed"))
    elif signer is not None:
        signer.sign(does_not_ship(opened, (folder, opened.folder / DEFAULT_FOLDER), FILES))
        options.progress(Notice(f"signed: {opened.folder / SIGNATURE}"))
    return result


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


def _counting(bundle: Bundle, asked: Sequence[str]) -> set[str]:
    """The stages without which a verdict is incomplete: what is shipped, what it is held to, what was asked.

    TensorRT-RTX's engines are never deployed.
    """
    built = bundle.manifest.stages.get(BUILD_ENGINE)
    engine = built is not None and built.results.get("builder") != "tensorrt-rtx"
    low = [low_stage(bundle), emulated_stage(bundle)] if bundle.low_graph else []
    return {TORCH, ONNX_FP32, *low, *asked, *(["engine"] if engine else [])}


def _note(ran: Mapping[str, StageRun], reference: str) -> str:
    if reference == TORCH:
        return ""
    answer = ran[TORCH].answer
    why = answer.reason if isinstance(answer, Skipped) else ran[TORCH].failure
    stand_in = f"the reference is {reference}" if reference else "there is nothing to compare with"
    return f"{TORCH} did not run ({why}), so {stand_in}."


def _gates(row: StageReport, limits: Mapping[str, Limits]) -> tuple[Gate, ...]:
    wanted, as_served = limits_in_role(
        row.name, limits, is_reference=row.status == "reference", serves=row.serves
    )
    metrics = row.served if as_served and row.served else row.measures
    failure = row.reason if row.status == "failed" else ""
    verified = bool(row.verification.get("verified")) if row.verification else None
    seen = (row.size_ratio, verified, row.consistency, row.other_files, row.as_planned)
    return decide(row.name, Evidence(metrics, failure, *seen), wanted)


def _record(bundle: Bundle, result: ParityReport, limits: Mapping[str, Limits]) -> None:
    """Adds the stage to the manifest."""
    engine = [ENGINE, NETWORK] if BUILD_ENGINE in bundle.manifest.stages else []
    inputs = [FP32_GRAPH, *filter(None, [bundle.low_graph]), PLAN, *engine]
    home, written = bundle.folder.resolve(), [result.folder / name for name in FILES]
    outputs = [path.resolve() for path in (*written, bundle.folder / CERTIFICATE)]
    gates = {
        stage: {name: value for name, value in vars(limit).items() if value is not None}
        for stage, limit in limits.items()
    }
    bundle.record(
        PARITY,
        inputs=[name for name in inputs if (bundle.folder / name).is_file()],
        outputs=[str(path.relative_to(home)) for path in outputs if path.is_relative_to(home)],
        tools=["bertmp", "torch", "onnxruntime", "tokenizers"],
        settings={"data": str(result.data.file), "gates": gates, "report": str(result.folder)},
        results=result.summary(),
        seconds=result.seconds,
    )
