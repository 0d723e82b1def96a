"""What parity found, and a summary of the bundle, as data; how it is drawn is `report`'s business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bertmp.core.io import read_json
from bertmp.export.bundle import BUILD_ENGINE, FP32_GRAPH, NETWORK, PARITY, PLAN, Bundle
from bertmp.export.consistency.check import Consistency
from bertmp.export.engine.verify import verification_of
from bertmp.export.parity.gates import (
    Gate,
)
from bertmp.export.parity.localise import Localisation
from bertmp.export.parity.measures import (
    Flip,
    StageMetrics,
    finite,
)
from bertmp.export.parity.verdict import Unchecked, Verdict, decide_verdict
from bertmp.export.precision.plan import NodePlan, PrecisionPlan, RangeRecord
from bertmp.metrics.comparison import MetricComparison

FORMAT = 1

Status = Literal["reference", "run", "not run", "failed"]
StageVerdict = Literal["reference", "passed", "verified", "not run", "failed"]


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
        scores: the task's metrics beside the reference's; empty where the right answers are not known.
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
    scores: tuple[MetricComparison, ...] = ()
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
            "details": dict(self.details),
            "verification": dict(self.verification),
            "consistency": self.consistency and self.consistency.to_json(),
            "scores": [one.to_json() for one in self.scores],
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
    unchecked: tuple[Unchecked, ...]
    flips: tuple[FlipRow, ...]
    contents: BundleSummary
    environment: Mapping[str, str]
    seconds: float
    created: str

    @property
    def verdict(self) -> Verdict:
        """`passed` where every gate passed and nothing that counts was left out."""
        return decide_verdict(self.reference, not self.failed_gates, self.unchecked)

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    def headline(self) -> str:
        """The verdict in one line, with the reason where it is not `passed`."""
        gates, failed = len(self.gates), len(self.failed_gates)
        line = f"{gates - failed} of {gates} gates passed"
        missing = "; ".join(one.sentence() for one in self.unchecked if not one.allowed)
        allowed = "; ".join(f"{one.sentence()} (allowed)" for one in self.unchecked if one.allowed)
        return "; ".join(
            filter(None, [line if self.reference else "nothing to compare with", missing, allowed])
        )

    @property
    def has_accuracy(self) -> bool:
        """Whether any stage's labels could be judged."""
        return any(
            stage.measures is not None and stage.measures.accuracy is not None for stage in self.stages
        )

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)

    def verdict_on(self, stage: StageReport) -> StageVerdict:
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
            "failed_gates": [f"{gate.stage}.{gate.name}" for gate in self.failed_gates],
            "stages": {stage.name: _figures(stage) for stage in self.stages},
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
            "bundle_summary": self.contents.to_json(),
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


_TELLING = ("MATRIX_MULTIPLY", "NORMALIZATION", "SOFTMAX")


@dataclass(frozen=True)
class RuleSummary:
    """The nodes that one rule keeps in FP32.

    Attributes:
        rule: the rule's name.
        sentences: its reasons, each once, the most frequent first.
        ops: operator type → number of nodes.
        nodes: the nodes' names, with the module where it is known.
        error: the largest measured with some of them in FP16; None where none was measured.
    """

    rule: str
    sentences: tuple[str, ...]
    ops: Mapping[str, int]
    nodes: tuple[str, ...]
    error: float | None = None


@dataclass(frozen=True)
class FileSummary:
    """One of the bundle's files: which stage made it, its size in bytes and its fingerprint."""

    name: str
    stage: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BundleSummary:
    """A summary of a bundle.

    Attributes:
        files: the files that its stages wrote.
        precisions: `fp16`, `fp32`, `integer` → number of nodes; empty without a plan.
        rules: why nodes stay FP32, rule by rule.
        headroom: block → how many times its largest number fits into the low precision; empty where no ranges
            were known.
        ranges: where the ranges are from, in words; empty as well.
        engine: the results that the engine's build recorded; empty without an engine.
        network: layer type → precision → number of layers of the engine; empty where it is not listed.
        low_graph: the low-precision graph's file; None without one.
        low_precision: `fp16` or `bf16`.
    """

    files: tuple[FileSummary, ...] = ()
    precisions: Mapping[str, int] = field(default_factory=dict)
    rules: tuple[RuleSummary, ...] = ()
    headroom: Mapping[str, float] = field(default_factory=dict)
    ranges: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    low_graph: str | None = None
    low_precision: str = "fp16"

    def size_of(self, name: str) -> int | None:
        """A file's size in bytes; None where no stage wrote it."""
        return next((file.size for file in self.files if file.name == name), None)

    @property
    def size_ratio(self) -> float | None:
        """The low-precision graph's file against the FP32 graph's."""
        low, fp32 = self.size_of(self.low_graph or ""), self.size_of(FP32_GRAPH)
        return low / fp32 if low and fp32 else None

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["headroom"] = {block: finite(value) for block, value in self.headroom.items()}
        for rule in plain["rules"]:
            rule["error"] = finite(rule["error"]) if rule["error"] is not None else None
        return plain


def summarise_bundle(bundle: Bundle) -> BundleSummary:
    """Reads the manifest, the precision plan and the engine's listing.

    Raises:
        InputError: one of them is damaged.
    """
    manifest = bundle.manifest
    files = tuple(
        FileSummary(name, stage, (bundle.folder / name).stat().st_size, sha256)
        for stage, record in manifest.stages.items()
        if stage != PARITY  # the report that this one replaces
        for name, sha256 in record.outputs.items()
        if (bundle.folder / name).is_file()
    )
    engine = manifest.stages.get(BUILD_ENGINE)
    plan_file, network_file = bundle.folder / PLAN, bundle.folder / NETWORK
    plan = PrecisionPlan.load(plan_file) if plan_file.is_file() else None
    return BundleSummary(
        files=files,
        precisions=dict(Counter(node.precision for node in plan.nodes)) if plan else {},
        rules=_by_rule(plan.kept_fp32()) if plan else (),
        headroom=dict(plan.ranges.blocks) if plan and plan.ranges else {},
        ranges=_source(plan.ranges) if plan and plan.ranges else "",
        engine=dict(engine.results) if engine else {},
        network=_layers(read_json(network_file)) if engine and network_file.is_file() else {},
        low_graph=bundle.low_graph,
        low_precision=bundle.low_precision,
    )


def _source(ranges: RangeRecord) -> str:
    texts = f"{ranges.texts} texts of " if ranges.source == "calibration" else "what training recorded in "
    return f"{texts}{ranges.file}"


def _by_rule(nodes: list[NodePlan]) -> tuple[RuleSummary, ...]:
    """Groups FP32 nodes by their first reason's rule: a node stands in one group, so that counts add up."""
    groups: dict[str, list[NodePlan]] = {}
    for node in nodes:
        groups.setdefault(node.reasons[0].rule if node.reasons else "unexplained", []).append(node)
    return tuple(
        RuleSummary(
            rule=rule,
            sentences=tuple(_by_count(reason.sentence for node in members for reason in node.reasons[:1])),
            ops=_by_count(node.op for node in members),
            nodes=tuple(f"{node.name} ({node.module})" if node.module else node.name for node in members),
            error=max((node.error for node in members if node.error is not None), default=None),
        )
        for rule, members in sorted(groups.items(), key=lambda item: -len(item[1]))
    )


def _by_count(words: Iterable[str]) -> dict[str, int]:
    """Each word and how often it occurs, the most frequent first."""
    return dict(Counter(words).most_common())


def _layers(network: Any) -> dict[str, dict[str, int]]:
    """Layer type → precision → number: first the types that the plan is about, then the most frequent."""
    summary: dict[str, dict[str, int]] = verification_of(network)["summary"]
    return dict(sorted(summary.items(), key=lambda item: (item[0] not in _TELLING, -sum(item[1].values()))))
