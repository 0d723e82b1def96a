"""`bertmp parity`: runs the chain, measures every stage, decides its gates, writes the report."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from bertmp.core.errors import InputError
from bertmp.core.hardware import nvidia_driver
from bertmp.core.io import sha256_file
from bertmp.core.options import keywords_of
from bertmp.core.progress import Notice, ProgressCallback
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, FP32_GRAPH, NETWORK, PARITY, PLAN, Bundle
from bertmp.export.parity.adversarial_run import report_of
from bertmp.export.parity.block_errors import measure_block_errors
from bertmp.export.parity.bundle_stages import ONNX_FP32, chain, emulated_stage, low_stage
from bertmp.export.parity.bundle_summary import summarise_bundle
from bertmp.export.parity.certificate import CERTIFICATE, REPORT_OUTSIDE, make_certificate
from bertmp.export.parity.compared_stages import compare_stages
from bertmp.export.parity.confusion import confusion_of
from bertmp.export.parity.cpu_bf16_stage import CPU_BF16
from bertmp.export.parity.failing_inputs import failed_batches, failed_examples, save_failing
from bertmp.export.parity.flip_rows import flip_rows
from bertmp.export.parity.gates import Gate, Limits, changed_limits, read_limits
from bertmp.export.parity.golden_examples import GOLDEN_EXAMPLES, golden_examples, save_golden_examples
from bertmp.export.parity.model_card import model_card
from bertmp.export.parity.parity_options import ParityOptions
from bertmp.export.parity.reading import ParityData, read_inputs
from bertmp.export.parity.report import FILES, environment, write_report
from bertmp.export.parity.result import (
    DataSummary,
    ParityReport,
    StageReport,
)
from bertmp.export.parity.signature import SIGNATURE, Signer, does_not_ship
from bertmp.export.parity.stage import Skipped, StageRun, run_all
from bertmp.export.parity.torch_stages import TORCH
from bertmp.export.parity.verdict import Unchecked, check_stage_names, find_unchecked

DEFAULT_FOLDER = "parity"


@keywords_of(ParityOptions)
def parity(options: ParityOptions) -> ParityReport:
    """Compares every stage of a bundle with its FP32 checkpoint on the examples of `data`.

    Writes `report.html`, `report.json`, `junit.xml`, `MODEL_CARD.md`, `certificate.json` (into the bundle as
    well) and the manifest's entry `parity`, whether the gates pass or not, and `golden-examples.json` for
    `deploy` unless the verdict is failed; an error or an interruption leaves all as they were. With `sign`,
    the bundle is signed last, unless the verdict is failed.

    Raises:
        InputError: a bad or stale bundle, bad data, a stage that does not exist, or a server that stopped
            answering midway (the report is written before that is raised).
        MissingComponent: ONNX Runtime, or model-signing for `sign`, is not installed.
    """
    started = time.monotonic()
    opened = Bundle.open(options.bundle)
    folder = options.report or opened.folder / DEFAULT_FOLDER
    _require_folder(folder)
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
    compared = compare_stages(opened, stages, ran, examples, limits, options)
    gates = tuple(gate for row in compared.rows for gate in compared.gates[row.name])
    result = ParityReport(
        bundle=opened.folder,
        folder=folder,
        reference=compared.reference,
        note=" ".join(
            filter(None, [_note(ran, compared.reference), examples.note, _gates_note(opened, limits, names)])
        ),
        data=_summary(examples),
        stages=compared.rows,
        gates=gates,
        unchecked=_unchecked(opened, compared.rows, gates, options),
        flips=tuple(flip for row in compared.rows for flip in flip_rows(row, examples)),
        contents=contents,
        block_errors=measure_block_errors(opened, examples.inputs, options.progress),
        confusion=confusion_of(
            compared.answered,
            [name for name in compared.names if name != CPU_BF16],
            examples.inputs,
            examples.classes,
        ),
        environment=environment(),
        seconds=time.monotonic() - started,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        adversarial=report_of(compared.adversarial, compared.adversarial_answers, compared.findings),
    )
    golden = None if result.verdict == "failed" else golden_examples(opened, examples.inputs)
    write_report(result, make_certificate(opened, result, nvidia_driver()), model_card(opened, result))
    failed, left_out = failed_examples(compared.rows, compared.gates, examples)
    failed = [*failed_batches(compared.adversarial, compared.findings), *failed]
    save_failing(folder, opened.task, options.seed, failed, left_out, examples.inputs.pad_id)
    save_golden_examples(opened, golden)
    _record(opened, result, limits)
    _raise_interruption(ran, folder)
    signed = signer is not None and _sign(signer, opened, result, options.progress)
    if not signed and (opened.folder / SIGNATURE).is_file():
        options.progress(
            Notice(f"the signature in {SIGNATURE} is of an earlier run and no longer holds: --sign KEY")
        )
    return result


def _require_folder(folder: Path) -> None:
    """Refuses a report's folder that cannot be written, before the long part."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError("not a folder", nearest, "name another folder with --report")
    if not os.access(nearest, os.W_OK):
        raise InputError("the folder cannot be written to", nearest, "name another folder with --report")


def _summary(examples: ParityData) -> DataSummary:
    source, inputs = examples.examples.source, examples.inputs
    truncated = sum(encoded.truncated for encoded in inputs.encoded)
    labelled, pairs = inputs.truth is not None, inputs.pairs is not None
    return DataSummary(source, sha256_file(source), len(inputs.texts), labelled, truncated, pairs)


def _unchecked(
    bundle: Bundle, rows: Sequence[StageReport], gates: Sequence[Gate], options: ParityOptions
) -> tuple[Unchecked, ...]:
    not_run = [(row.name, row.reason) for row in rows if row.status == "not run"]
    known = {row.name for row in rows} | {row.name.partition("-")[0] for row in rows}  # triton-grpc is triton
    not_run += [
        (row.name, f"its plan was not applied again: {row.plan_not_compared}")
        for row in rows
        if row.plan_not_compared
    ]
    judged = {gate.stage for gate in gates}
    not_run += [
        (row.name, "the gates file leaves out all its gates")
        for row in rows
        if row.status in ("run", "reference") and row.name not in judged
    ]
    not_run += [(name, "no --server was given") for name in options.require if name not in known]
    counting = _counting(bundle, [stage.name for stage in options.extra_stages])
    return find_unchecked(not_run, counting, options.require, options.allow_incomplete)


def _raise_interruption(ran: Mapping[str, StageRun], folder: Path) -> None:
    """Raises the error of a server that stopped answering."""
    for run in ran.values():
        if run.interruption is not None:
            todo = f"start it again; the report of the other stages is {folder / 'report.html'}"
            raise InputError(run.interruption.what, run.interruption.where, todo) from run.interruption


def _sign(signer: Signer, bundle: Bundle, result: ParityReport, progress: ProgressCallback) -> bool:
    """Signs the bundle, unless the verdict is failed; False then."""
    if result.verdict == "failed":
        progress(Notice("not signed: the verdict is failed"))
        return False
    signer.sign(does_not_ship(bundle, (result.folder, bundle.folder / DEFAULT_FOLDER), FILES))
    progress(Notice(f"signed: {bundle.folder / SIGNATURE}"))
    return True


def _counting(bundle: Bundle, asked: Sequence[str]) -> set[str]:
    """The stages without which a verdict is incomplete: what is shipped, what it is held to, what was asked.

    TensorRT-RTX's engines are never deployed.
    """
    built = bundle.manifest.stages.get(BUILD_ENGINE)
    engine = built is not None and built.results.get("builder") != "tensorrt-rtx"
    low = [low_stage(bundle), emulated_stage(bundle)] if bundle.low_graph else []
    return {TORCH, ONNX_FP32, *low, *asked, *(["engine"] if engine else [])}


def _gates_note(bundle: Bundle, limits: Mapping[str, Limits], stages: Sequence[str]) -> str:
    changed = changed_limits(limits, bundle.low_precision, stages)
    return f"Other gates than the built-in ones: {changed}." if changed else ""


def _note(ran: Mapping[str, StageRun], reference: str) -> str:
    if reference == TORCH:
        return ""
    answer = ran[TORCH].answer
    why = answer.reason if isinstance(answer, Skipped) else ran[TORCH].failure
    stand_in = f"the reference is {reference}" if reference else "there is nothing to compare with"
    return f"{TORCH} did not run ({why}), so {stand_in}."


def _record(bundle: Bundle, result: ParityReport, limits: Mapping[str, Limits]) -> None:
    """Adds the stage to the manifest."""
    engine = [ENGINE, NETWORK] if BUILD_ENGINE in bundle.manifest.stages else []
    inputs = [FP32_GRAPH, *filter(None, [bundle.low_graph]), PLAN, *engine]
    home, written = bundle.folder.resolve(), [result.folder / name for name in FILES]
    beside = [
        path for path in (bundle.folder / CERTIFICATE, bundle.folder / GOLDEN_EXAMPLES) if path.is_file()
    ]
    outputs = [path.resolve() for path in (*written, *beside)]
    outside = {str(path): sha256_file(path) for path in outputs if not path.is_relative_to(home)}
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
        results={**result.summary(), **({REPORT_OUTSIDE: outside} if outside else {})},
        seconds=result.seconds,
    )
