"""`bertmp parity`: runs the chain, measures every stage, decides its gates, writes the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from bertmp.core.errors import InputError
from bertmp.core.options import keywords_of
from bertmp.data.readers import Columns
from bertmp.export.bundle import BUILD_ENGINE, ENGINE, FP16_GRAPH, FP32_GRAPH, NETWORK, PARITY, PLAN, Bundle
from bertmp.export.parity.bundle_stages import ONNX_FP16, ONNX_FP32, TORCH, chain
from bertmp.export.parity.gates import (
    DEFAULTS,
    Evidence,
    Gate,
    Limits,
    StageMetrics,
    decide,
    limits_of,
    measure,
    read_gates,
)
from bertmp.export.parity.parity_options import ParityOptions
from bertmp.export.parity.report import FILES, write_report
from bertmp.export.parity.result import (
    BundleSummary,
    DataSummary,
    FlipRow,
    ParityReport,
    StageReport,
    environment,
    summarise_bundle,
)
from bertmp.export.parity.stage import ParityData, Skipped, StageOutput, StageRun, read_inputs, run_all

DEFAULT_FOLDER = "parity"


@keywords_of(ParityOptions)
def parity(options: ParityOptions) -> ParityReport:
    """Compares every stage of a bundle with its FP32 checkpoint on the examples of `data`.

    Writes `report.html`, `report.json` and `junit.xml`, and the manifest's entry `parity`, whether the gates
    pass or not; an error or an interruption leaves both as they were.

    Raises:
        InputError: a bad or stale bundle, bad data, or a server that does not answer.
        MissingComponent: ONNX Runtime is not installed.
    """
    started = time.monotonic()
    opened = Bundle.open(options.bundle)
    folder = _report_folder(opened, options.report)
    own = chain(opened, options.checkpoint)
    stages = (*own, *options.extra_stages)
    columns = Columns(options.text_column, options.text_pair_column, options.label_column)
    contents, examples = summarise_bundle(opened), read_inputs(opened, options.data, columns)
    # Served stages go first: a server that is not there shows before the long part.
    ran = run_all((*options.extra_stages, *own), examples.inputs, options.progress)
    reference = _reference(ran)
    rows = tuple(_stage_report(ran[stage.name], ran, reference, examples, contents) for stage in stages)
    limits = _limits(options.gates)
    result = ParityReport(
        bundle=opened.folder,
        folder=folder,
        reference=reference,
        note=_note(ran, reference),
        data=DataSummary(
            examples.source,
            examples.sha256,
            len(examples.lines),
            examples.inputs.labels is not None,
            examples.truncated,
        ),
        stages=rows,
        gates=tuple(gate for row in rows for gate in _gates(row, limits)),
        flips=tuple(flip for row in rows for flip in _flip_rows(row, examples)),
        contents=contents,
        environment=environment(),
        seconds=time.monotonic() - started,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    write_report(result)
    _record(opened, result, limits)
    return result


def _limits(gates: Mapping[str, object] | Path | str | None) -> Mapping[str, Limits]:
    if isinstance(gates, (str, Path)):
        return read_gates(Path(gates))
    return cast(Mapping[str, Limits], gates) if gates else DEFAULTS


def _report_folder(bundle: Bundle, report: Path | None) -> Path:
    folder = bundle.folder / DEFAULT_FOLDER if report is None else Path(report)
    if folder.exists() and not folder.is_dir():
        raise InputError("not a folder", folder, "name another folder with --report")
    return folder


def _reference(ran: Mapping[str, StageRun]) -> str:
    """The checkpoint, else the FP32 graph; empty where neither answered."""
    answered = (name for name in (TORCH, ONNX_FP32) if isinstance(ran[name].answer, StageOutput))
    return next(answered, "")


def _note(ran: Mapping[str, StageRun], reference: str) -> str:
    if reference == TORCH:
        return ""
    first = ran[TORCH]
    why = first.failure or (first.answer.reason if isinstance(first.answer, Skipped) else "")
    stand_in = f"the reference is {reference}" if reference else "there is nothing to compare with"
    return f"{TORCH} did not run ({why}), so {stand_in}."


def _stage_report(
    ran: StageRun,
    others: Mapping[str, StageRun],
    reference: str,
    examples: ParityData,
    contents: BundleSummary,
) -> StageReport:
    """Measures one stage; a stage whose answers cannot be compared has failed."""
    answer, size = ran.answer, contents.size_ratio if ran.name == ONNX_FP16 else None
    if isinstance(answer, Skipped):
        return StageReport(
            ran.name, "not run", answer.reason, size_ratio=size, verification=answer.verification
        )
    if answer is None or not reference:
        why = ran.failure or "there is no reference to compare with"
        return StageReport(ran.name, "failed", why, ran.seconds, size_ratio=size)
    serves = _serves(answer, others, reference)
    try:
        _check_labels(answer, examples)
        metrics = _against(reference, answer, others, examples)
        served = _against(serves, answer, others, examples) if serves else None
    except ValueError as error:
        return StageReport(ran.name, "failed", str(error), ran.seconds, size_ratio=size)
    return StageReport(
        name=ran.name,
        status="reference" if ran.name == reference else "run",
        seconds=ran.seconds,
        metrics=metrics,
        serves=serves,
        served=served,
        size_ratio=size,
        details=answer.details,
    )


def _check_labels(answer: StageOutput, examples: ParityData) -> None:
    """A served model names its labels: the same in another order would be other answers.

    Raises:
        ValueError: they are not the bundle's.
    """
    served = answer.details.get("labels")
    if isinstance(served, (list, tuple)) and list(served) != list(examples.classes):
        what = f"it serves the labels {', '.join(map(str, served))}, not {', '.join(examples.classes)}"
        raise ValueError(what)


def _serves(answer: StageOutput, others: Mapping[str, StageRun], reference: str) -> str:
    """The in-process stage that a served model must answer like; empty for a stage that is not served.

    A served model may name the graph that it runs (`serves` among its details); a CPU host serves the FP32
    graph.
    """
    if answer.answers is None and answer.probabilities is None:
        return ""
    for name in (str(answer.details.get("serves", "")), ONNX_FP32):
        if name in others and isinstance(others[name].answer, StageOutput):
            return name
    return reference


def _against(
    name: str, answer: StageOutput, others: Mapping[str, StageRun], examples: ParityData
) -> StageMetrics:
    yardstick = others[name].answer
    assert isinstance(yardstick, StageOutput)
    return measure(yardstick, answer, examples.inputs.labels)


def _gates(row: StageReport, limits: Mapping[str, Limits]) -> tuple[Gate, ...]:
    wanted = limits_of(row.name, limits)
    if row.status == "reference":  # against itself every other gate would hold
        wanted = Limits(non_finite=wanted.non_finite)
    evidence = Evidence(
        metrics=row.served or row.metrics,
        failure=row.reason if row.status == "failed" else "",
        size_ratio=row.size_ratio,
        verified=bool(row.verification.get("verified")) if row.verification else None,
    )
    return decide(row.name, evidence, wanted)


def _flip_rows(row: StageReport, examples: ParityData) -> list[FlipRow]:
    inputs, labels = examples.inputs, examples.classes

    def text_of(number: int) -> str:
        pair = f" ⏎ {inputs.pairs[number]}" if inputs.pairs is not None else ""
        return inputs.texts[number] + pair

    return [
        FlipRow(
            stage=row.name,
            line=examples.lines[flip.row],
            text=text_of(flip.row),
            truth=labels[inputs.labels[flip.row]] if inputs.labels is not None else "",
            before=labels[flip.reference],
            after=labels[flip.answer],
            flip=flip,
        )
        for flip in (row.metrics.flips if row.metrics else ())
    ]


def _record(bundle: Bundle, result: ParityReport, limits: Mapping[str, Limits]) -> None:
    """Adds the stage to the manifest."""
    engine = [ENGINE, NETWORK] if BUILD_ENGINE in bundle.manifest.stages else []
    inputs = [FP32_GRAPH, FP16_GRAPH, PLAN, *engine]
    outputs = [result.folder / name for name in FILES]
    home = bundle.folder.resolve()
    settings: dict[str, Any] = {
        "data": str(result.data.file),
        "gates": {name: _plain(limit) for name, limit in limits.items()},
        "report": str(result.folder),
    }
    bundle.record(
        PARITY,
        inputs=[name for name in inputs if (bundle.folder / name).is_file()],
        outputs=[
            str(path.resolve().relative_to(home)) for path in outputs if path.resolve().is_relative_to(home)
        ],
        tools=["bertmp", "torch", "onnxruntime", "tokenizers"],
        settings=settings,
        results=result.summary(),
        seconds=result.seconds,
    )


def _plain(limits: Limits) -> dict[str, Any]:
    return {name: value for name, value in vars(limits).items() if value is not None}
