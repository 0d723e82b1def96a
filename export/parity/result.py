"""What parity found, as data; how it is drawn is `report`'s business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertmp.export.parity.bundle_summary import BundleSummary
from bertmp.export.parity.gates import Gate
from bertmp.export.parity.stage_metrics import Flip, StageMetrics, finite

FORMAT = 1

Status = Literal["reference", "run", "not run", "failed"]
Verdict = Literal["reference", "passed", "verified", "not run", "failed"]


@dataclass(frozen=True)
class StageReport:
    """One link of the chain after the run.

    Attributes:
        name: the stage's name.
        status: `reference` for the stage that all others are measured against.
        reason: why it did not run, or the line that it failed with; empty otherwise.
        seconds: wall time, loading included.
        metrics: its answers against the reference; None where there are none.
        serves: the in-process stage that serves as yardstick of a served model; empty for other stages.
        served: the answers against those of `serves`.
        size_ratio: its file against the FP32 graph's, where it has one.
        details: further facts about the stage.
        verification: what was verified of a stage that did not run.
    """

    name: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    metrics: StageMetrics | None = None
    serves: str = ""
    served: StageMetrics | None = None
    size_ratio: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts_per_second(self) -> float | None:
        """Speed, loading included; None where nothing ran."""
        return self.metrics.texts / self.seconds if self.metrics and self.seconds else None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
            "texts_per_second": self.texts_per_second and round(self.texts_per_second, 1),
            "metrics": self.metrics and self.metrics.to_json(),
            "serves": self.serves,
            "served": self.served and self.served.to_json(),
            "size_ratio": self.size_ratio,
            "details": dict(self.details),
            "verification": dict(self.verification),
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
        return {
            "stage": self.stage,
            "line": self.line,
            "text": self.text,
            "label": self.truth or None,
            "reference": self.before,
            "answer": self.after,
            "margin": finite(self.flip.margin),
            "error": finite(self.flip.error),
            "explained": self.flip.explained,
        }


@dataclass(frozen=True)
class DataSummary:
    """The examples that were answered.

    Attributes:
        file, sha256: the data file and its fingerprint.
        texts: how many.
        labelled: whether the file names the right label of each.
        truncated: how many were truncated to the model's positions.
    """

    file: Path
    sha256: str
    texts: int
    labelled: bool
    truncated: int


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
        flips: every example whose label changed in some stage.
        contents: the summary of the bundle.
        environment: the machine and the versions.
        seconds: wall time.
        created: ISO 8601, UTC.
    """

    bundle: Path
    folder: Path
    reference: str
    note: str
    data: DataSummary
    stages: tuple[StageReport, ...]
    gates: tuple[Gate, ...]
    flips: tuple[FlipRow, ...]
    contents: BundleSummary
    environment: Mapping[str, str]
    seconds: float
    created: str

    @property
    def passed(self) -> bool:
        """Whether there is a reference and every gate passed."""
        return bool(self.reference) and all(gate.passed for gate in self.gates)

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)

    def verdict(self, stage: StageReport) -> Verdict:
        """The verdict on a stage; `verified` where it did not run but its precision holds."""
        if any(gate.stage == stage.name and not gate.passed for gate in self.gates):
            return "failed"
        if stage.status == "not run" and stage.verification.get("verified"):
            return "verified"
        return "passed" if stage.status == "run" else stage.status

    def stage(self, name: str) -> StageReport:
        """One stage by its name.

        Raises:
            KeyError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def summary(self) -> dict[str, Any]:
        """What the manifest keeps: the verdict and the figures of each stage."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "texts": self.data.texts,
            "data_sha256": self.data.sha256,
            "truncated": self.data.truncated,
            "failed_gates": [f"{gate.stage}.{gate.name}" for gate in self.failed_gates],
            "stages": {stage.name: _figures(stage) for stage in self.stages},
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, with everything that the HTML report shows but its pictures."""
        return {
            "format": FORMAT,
            "passed": self.passed,
            "bundle": str(self.bundle),
            "report": str(self.folder / "report.html"),
            "reference": self.reference,
            "note": self.note,
            "data": {**asdict(self.data), "file": str(self.data.file)},
            "stages": [stage.to_json() for stage in self.stages],
            "gates": [asdict(gate) for gate in self.gates],
            "flips": [row.to_json() for row in self.flips],
            "bundle_summary": self.contents.to_json(),
            "environment": dict(self.environment),
            "seconds": round(self.seconds, 3),
            "created": self.created,
        }


def _figures(stage: StageReport) -> dict[str, Any]:
    figures: dict[str, Any] = {"status": stage.status}
    if stage.reason:
        figures["reason"] = stage.reason
    if stage.metrics is not None:
        metrics = stage.metrics.to_json()
        figures.update({key: metrics[key] for key in ("max_error", "mean_error", "flips", "accuracy")})
    return figures
