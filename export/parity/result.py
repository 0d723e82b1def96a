"""What parity found, as data; how it is drawn is `report`'s business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertmp.core.io import plain
from bertmp.export.consistency.check import Consistency
from bertmp.export.parity.adversarial_findings import AdversarialReport
from bertmp.export.parity.block_errors import BlockErrors
from bertmp.export.parity.bundle_summary import BundleSummary
from bertmp.export.parity.confusion import Confusion
from bertmp.export.parity.cpu_bf16_stage import NOT_SERVED
from bertmp.export.parity.gates import (
    Gate,
)
from bertmp.export.parity.localise import Localisation
from bertmp.export.parity.stage_metrics import (
    Flip,
    StageMetrics,
    finite,
)
from bertmp.export.parity.verdict import Unchecked, Verdict, decide_verdict
from bertmp.metrics.comparison import MetricComparison

FORMAT = 2

Status = Literal["reference", "run", "not run", "failed"]
StageVerdict = Literal["reference", "passed", "verified", "not judged", "not run", "failed"]


@dataclass(frozen=True)
class StageReport:
    """One link of the chain after the run.

    Attributes:
        name: the stage's name.
        status: `reference` for the stage that all others are measured against.
        reason: why it did not run, or the line that it failed with; empty otherwise.
        seconds: wall time, loading included.
        measures: its answers against the reference; None where there are none.
        serves: the in-process stage that serves as yardstick of a served model; empty for other stages.
        served: the answers against those of `serves`.
        size_ratio: the weights that the plan puts into 16 bits against the same in FP32; None for other
            stages.
        details: further facts about the stage.
        verification: what was verified of a stage that did not run.
        consistency: its answers compared with each other; None where they were not.
        task_metrics: the task's metrics beside the reference's; empty where the right answers are not known.
        other_files: files of a served model that are not the bundle's; None where nothing is known of them.
        answers_differ: of a served model, what first differs from what the FP32 graph answers; empty where
            nothing does, None where that was not compared.
        as_planned: what first differs from the graph that the plan makes; empty where nothing does, None for
            other stages.
        plan_not_compared: why the plan was not applied again; empty where it was, and for other stages.
        as_exported: of the checkpoint, what first differs from it in the bundle; empty where nothing does,
            None for other stages.
        localisation: of the first stage that failed, where it goes wrong; None for others.
    """

    name: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    measures: StageMetrics | None = None
    serves: str = ""
    served: StageMetrics | None = None
    size_ratio: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)
    consistency: Consistency | None = None
    task_metrics: tuple[MetricComparison, ...] = ()
    other_files: tuple[str, ...] | None = None
    answers_differ: str | None = None
    as_planned: str | None = None
    plan_not_compared: str = ""
    as_exported: str | None = None
    localisation: Localisation | None = None

    @property
    def texts_per_second(self) -> float | None:
        """Speed, loading included; None where nothing ran."""
        return self.measures.texts / self.seconds if self.measures and self.seconds else None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
            "texts_per_second": self.texts_per_second and round(self.texts_per_second, 1),
            "measures": self.measures and self.measures.to_json(),
            "serves": self.serves,
            "served": self.served and self.served.to_json(),
            "size_ratio": self.size_ratio,
            "details": plain(self.details),
            "verification": plain(self.verification),
            "consistency": self.consistency and self.consistency.to_json(),
            "task_metrics": [one.to_json() for one in self.task_metrics],
            "other_files": None if self.other_files is None else list(self.other_files),
            "answers_differ": self.answers_differ,
            "as_planned": self.as_planned,
            "plan_not_compared": self.plan_not_compared,
            "as_exported": self.as_exported,
            "localisation": self.localisation and self.localisation.to_json(),
        }


@dataclass(frozen=True)
class FlipRow:
    """A flip with its text, for people to read.

    Attributes:
        stage: the stage that answered otherwise.
        line: the line of the data file.
        text: the text, and its pair after ` ⏎ ` where there is one.
        truth: the right label; empty where the file is unlabelled.
        before, after: the reference's label and the stage's.
        flip: the numbers.
    """

    stage: str
    line: int
    text: str
    truth: str
    before: str
    after: str
    flip: Flip

    def to_json(self) -> dict[str, Any]:
        named = {"stage": self.stage, "line": self.line, "text": self.text, "label": self.truth or None}
        numbers = {"margin": finite(self.flip.margin), "error": finite(self.flip.error)}
        labels = {"reference": self.before, "answer": self.after}
        return {**named, **labels, **numbers, "explained": self.flip.explained}


@dataclass(frozen=True)
class DataSummary:
    """The examples that were answered.

    Attributes:
        file, sha256: the data file and its fingerprint.
        texts: how many.
        labelled: whether the file names the right label of each.
        truncated: how many were truncated to the model's positions.
        pairs: whether they are pairs of texts.
    """

    file: Path
    sha256: str
    texts: int
    labelled: bool
    truncated: int
    pairs: bool = False


@dataclass(frozen=True)
class ParityReport:
    """The result of a parity run.

    Attributes:
        bundle: the bundle's folder.
        folder: where `report.html`, `report.json` and `junit.xml` lie.
        reference: the stage that all others were measured against; empty where none answered.
        note: what limits the comparison (another reference than the checkpoint); usually empty.
        data: the examples.
        stages: the chain, in its order.
        gates: every decision.
        unchecked: the stages that count and were not checked.
        flips: every example whose label changed in some stage.
        contents: the summary of the bundle.
        block_errors: the low-precision graph's error by block and length.
        confusion: right labels against answers; None for tasks without, or where nobody says what is right.
        environment: the machine and the versions.
        seconds: wall time.
        created: ISO 8601, UTC.
        adversarial: what was found on the inputs that were made for the model; None where none were asked.
    """

    bundle: Path
    folder: Path
    reference: str
    note: str
    data: DataSummary
    stages: tuple[StageReport, ...]
    gates: tuple[Gate, ...]
    unchecked: tuple[Unchecked, ...]
    flips: tuple[FlipRow, ...]
    contents: BundleSummary
    block_errors: BlockErrors
    confusion: Confusion | None
    environment: Mapping[str, str]
    seconds: float
    created: str
    adversarial: AdversarialReport | None = None

    @property
    def verdict(self) -> Verdict:
        """`passed` where every gate passed and nothing that counts was left out."""
        return decide_verdict(self.reference, not self.failed_gates, self.unchecked)

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    def headline(self) -> str:
        """The verdict in one line, with the reason where it is not `passed`."""
        gates, failed = sum(gate.counts for gate in self.gates), len(self.failed_gates)
        line = f"{gates - failed} of {gates} gates passed"
        optional = dict.fromkeys(gate.stage for gate in self.failed_optional)
        missing = "; ".join(one.sentence() for one in self.unchecked if not one.allowed)
        allowed = "; ".join(f"{one.sentence()} (allowed)" for one in self.unchecked if one.allowed)
        return "; ".join(
            filter(
                None,
                [
                    line if self.reference else "nothing to compare with",
                    missing,
                    allowed,
                    *(f"{name} failed: {NOT_SERVED}" for name in optional),
                ],
            )
        )

    @property
    def has_accuracy(self) -> bool:
        """Whether any stage's labels could be judged."""
        return any(
            stage.measures is not None and stage.measures.accuracy is not None for stage in self.stages
        )

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """Those that the verdict depends on."""
        return tuple(gate for gate in self.gates if gate.counts and not gate.passed)

    @property
    def failed_optional(self) -> tuple[Gate, ...]:
        """Those that only decide whether a stage's precision is served."""
        return tuple(gate for gate in self.gates if not gate.counts and not gate.passed)

    def verdict_on(self, stage: StageReport) -> StageVerdict:
        """The verdict on a stage.

        `verified` where it did not run but its precision holds, `not judged` where it ran and has no gates.
        """
        gates = [gate for gate in self.gates if gate.stage == stage.name]
        if not all(gate.passed for gate in gates):
            return "failed"
        if stage.status == "not run" and stage.verification.get("verified"):
            return "verified"
        if stage.status != "run":
            return stage.status
        return "passed" if gates else "not judged"

    def stage(self, name: str) -> StageReport:
        """One stage by its name.

        Raises:
            KeyError: there is none.
        """
        return {stage.name: stage for stage in self.stages}[name]

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps: the verdict and the figures of each stage."""
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "unchecked": [asdict(one) for one in self.unchecked],
            "reference": self.reference,
            "texts": self.data.texts,
            "data_sha256": self.data.sha256,
            "truncated": self.data.truncated,
            "pairs": self.data.pairs,
            "adversarial": self.adversarial and self.adversarial.made(),
            "failed_gates": [f"{gate.stage}.{gate.name}" for gate in self.failed_gates],
            "stages": {
                stage.name: {**_figures(stage), "verdict": self.verdict_on(stage)} for stage in self.stages
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, with everything that the HTML report shows but its pictures."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "passed": self.passed,
            "unchecked": [asdict(one) for one in self.unchecked],
            "bundle": str(self.bundle),
            "report": str(self.folder / "report.html"),
            "reference": self.reference,
            "note": self.note,
            "data": {**asdict(self.data), "file": str(self.data.file)},
            "stages": [stage.to_json() for stage in self.stages],
            "gates": [asdict(gate) for gate in self.gates],
            "flips": [row.to_json() for row in self.flips],
            "adversarial": self.adversarial and self.adversarial.to_json(),
            "bundle_summary": self.contents.to_json(),
            "block_errors": self.block_errors.to_json(),
            "confusion": self.confusion and self.confusion.to_json(),
            "environment": dict(self.environment),
            "seconds": round(self.seconds, 3),
            "created": self.created,
        }


def _figures(stage: StageReport) -> dict[str, Any]:
    figures: dict[str, Any] = {"status": stage.status}
    if stage.reason:
        figures["reason"] = stage.reason
    if stage.measures is not None:
        metrics = stage.measures.to_json()
        figures.update({key: metrics[key] for key in ("max_error", "mean_error", "flips", "accuracy")})
    if stage.consistency is not None:
        figures["consistent"] = stage.consistency.passed
    return figures
