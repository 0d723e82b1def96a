"""A summary of a bundle for parity's report: its files, its plan's reasons, its engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bertmp.core.io import read_json
from bertmp.export.bundle import BUILD_ENGINE, EXPORT, FP32_GRAPH, NETWORK, PARITY, PLAN, Bundle
from bertmp.export.engine.verify import verification_of
from bertmp.export.parity.stage_metrics import finite
from bertmp.export.precision.plan import NodePlan, PrecisionPlan, RangeRecord

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
        task: what it was trained for.
        labels: its classes in the order of the logits; empty for tasks without.
        precisions: `fp16`, `fp32`, `integer` → number of nodes; empty without a plan.
        rules: why nodes stay FP32, rule by rule.
        headroom: block → how many times its largest number fits into the low precision; empty where no ranges
            were known.
        ranges: where the ranges are from, in words; empty as well.
        engine: the results that the engine's build recorded; empty without an engine.
        network: layer type → precision → number of layers of the engine; empty where it is not listed.
        low_graph: the low-precision graph's file; None without one.
        low_precision: `fp16` or `bf16`.
        checkpoint, checkpoint_sha256: the folder that was exported and its weights' fingerprint; empty where
            the manifest does not say.
    """

    files: tuple[FileSummary, ...] = ()
    task: str = ""
    labels: tuple[str, ...] = ()
    precisions: Mapping[str, int] = field(default_factory=dict)
    rules: tuple[RuleSummary, ...] = ()
    headroom: Mapping[str, float] = field(default_factory=dict)
    ranges: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    low_graph: str | None = None
    low_precision: str = "fp16"
    checkpoint: str = ""
    checkpoint_sha256: str = ""

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
    engine, export = manifest.stages.get(BUILD_ENGINE), manifest.stages.get(EXPORT)
    plan_file, network_file = bundle.folder / PLAN, bundle.folder / NETWORK
    plan = PrecisionPlan.load(plan_file) if plan_file.is_file() else None
    return BundleSummary(
        files=files,
        task=bundle.task,
        labels=tuple(bundle.labels),
        precisions=dict(Counter(node.precision for node in plan.nodes)) if plan else {},
        rules=_by_rule(plan.kept_fp32()) if plan else (),
        headroom=dict(plan.ranges.blocks) if plan and plan.ranges else {},
        ranges=_source(plan.ranges) if plan and plan.ranges else "",
        engine=dict(engine.results) if engine else {},
        network=_layers(read_json(network_file)) if engine and network_file.is_file() else {},
        low_graph=bundle.low_graph,
        low_precision=bundle.low_precision,
        checkpoint=str(export.settings.get("checkpoint") or "") if export else "",
        checkpoint_sha256=str(export.results.get("checkpoint_sha256") or "") if export else "",
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
