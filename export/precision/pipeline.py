"""From the options to a plan and the converted graph: ranges, rules, search, conversion, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.progress import ProgressCallback
from bertmp.export.graph.nodes import blocks_of
from bertmp.export.precision.apply import apply_plan, inserted_casts
from bertmp.export.precision.calibration import Calibration, read_calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import PrecisionPlan, Reason, SearchRecord
from bertmp.export.precision.planner import Planner, graph_sha256
from bertmp.export.precision.precision_options import PrecisionOptions
from bertmp.export.precision.ranges import Progress, Ranges, measure
from bertmp.export.precision.search import measured, search
from bertmp.export.precision.sensitivity import with_errors
from bertmp.export.precision.trained_ranges import trained_ranges


@dataclass(frozen=True)
class Planned:
    """A plan and the graph converted by it.

    Attributes:
        plan: the plan.
        graph: the mixed-precision graph.
        casts: casts in it that the conversion inserted.
    """

    plan: PrecisionPlan
    graph: ModelProto
    casts: int

    @property
    def meets_budget(self) -> bool:
        """Whether the measured error is finite and within the budget, where there is one."""
        search = self.plan.search
        return search is None or (search.bound_by is None and search.error < float("inf"))

    def summary(self) -> dict[str, Any]:
        """Counts and measured errors as plain values: for the manifest and `--json`."""
        plan = self.plan
        found: dict[str, Any] = {"nodes": plan.counts(), "casts": self.casts, "rewrites": len(plan.rewrites)}
        if plan.ranges is not None:
            least = min(plan.ranges.blocks, key=plan.ranges.blocks.__getitem__, default=None)
            found["ranges"] = {
                "source": plan.ranges.source,
                "file": plan.ranges.file,
                "texts": plan.ranges.texts,
                "tightest_block": least,
                "headroom": plan.ranges.blocks[least] if least is not None else None,
            }
        if plan.search is not None:
            search = plan.search
            found["measured"] = {
                "max_error": search.max_error,
                "error": search.error if search.error < float("inf") else None,
                "label_flips": search.label_flips,
                "texts": search.texts,
                "bound_by": search.bound_by,
            }
        return found


def plan_precision(
    graph: ModelProto,
    options: PrecisionOptions,
    *,
    tokenizer: Path,
    trained: Path | None = None,
) -> Planned:
    """Makes a plan by the options, or reads the one they name, and applies it.

    Args:
        graph: an FP32 graph whose nodes have unique names.
        tokenizer: the folder of the tokenizer for the calibration examples.
        trained: the ranges that training recorded, used where there is no calibration file.

    Raises:
        InputError: the calibration file or the tokenizer cannot be used, the examples do not fit the graph,
            or the plan is for another graph.
    """
    calibration = read_calibration(options.calibration, tokenizer, graph) if options.calibration else None
    if options.plan is not None:
        plan = _loaded(graph, options.plan, calibration, options.progress)
    else:
        plan = _planned(graph, options, calibration, trained)
    options.progress("converting")
    mixed = apply_plan(graph, plan)
    return Planned(plan, mixed, len(inserted_casts(mixed)))


def _planned(
    graph: ModelProto,
    options: PrecisionOptions,
    calibration: Calibration | None,
    trained: Path | None,
) -> PrecisionPlan:
    progress = options.progress
    ranges: Ranges | None = None
    if calibration is not None:
        ranges = measure(graph, calibration, _counting(progress, "measuring ranges, batch"))
    elif trained is not None:
        ranges = trained_ranges(trained, graph)
    progress("deciding by the rules")
    planner = Planner(
        graph,
        options.keep_fp32,
        allow=options.allow_fp16,
        target=options.precision,
        ranges=ranges,
        headroom=options.headroom,
    )
    if calibration is None:
        return planner.plan()
    evaluator = Evaluator(graph, calibration)
    if options.max_error is None:
        progress("measuring the error")
        plan = measured(planner, evaluator)
    else:
        counting = _counting(progress, "searching, plan at most")
        plan = search(planner, evaluator, options.max_error, blocks_of(graph), counting)
    return _with_measured_reasons(plan, evaluator, progress)


def _loaded(
    graph: ModelProto, file: Path, calibration: Calibration | None, progress: ProgressCallback
) -> PrecisionPlan:
    """A plan from the disk, perhaps edited; its error is measured again where there are examples."""
    plan = PrecisionPlan.load(file)
    if plan.graph_sha256 != graph_sha256(graph):
        raise InputError("the plan is for another graph", file, "make a plan for this one")
    _check_nodes(graph, plan, file)
    unexplained = [node.name for node in plan.kept_fp32() if not node.reasons]
    plan = plan.with_precision(unexplained, "fp32", Reason("edited", "the given plan sets it"))
    plan = replace(plan, nodes=tuple(replace(node, error=None) for node in plan.nodes), search=None)
    if calibration is None:
        return plan
    ranges = measure(graph, calibration, _counting(progress, "measuring ranges, batch"))
    planner = Planner(graph, target=plan.target, ranges=ranges, headroom=plan.headroom)
    progress("measuring the error")
    evaluator = Evaluator(graph, calibration)
    found = evaluator.measure(plan)
    plan = replace(
        plan,
        ranges=planner.range_record,
        search=SearchRecord(None, found.max_error, found.flips, calibration.texts),
    )
    return _with_measured_reasons(plan, evaluator, progress)


def _check_nodes(graph: ModelProto, plan: PrecisionPlan, file: Path) -> None:
    """Checks that an edited plan lists the graph's nodes, and gives a precision to those of floating point.

    Raises:
        InputError: it does not.
    """
    made = Planner(graph, target=plan.target).plan()
    known = {node.name: node for node in made.nodes}
    listed = {node.name for node in plan.nodes}
    for name in [*(listed - known.keys()), *(known.keys() - listed)]:
        what = "names a node that the graph does not have" if name in listed else "leaves out the node"
        raise InputError(f"the plan {what}: {name}", file, "edit only the precisions")
    for node in plan.nodes:
        if (node.precision == "integer") != (known[node.name].precision == "integer"):
            kind = "touches no" if node.precision != "integer" else "touches a"
            raise InputError(
                f"the plan has {node.name} in {node.precision}, which {kind} floating-point tensor",
                file,
                f"write {known[node.name].precision}",
            )


def _with_measured_reasons(
    plan: PrecisionPlan, evaluator: Evaluator, progress: ProgressCallback
) -> PrecisionPlan:
    """The plan with the measured error behind every FP32 node."""
    # There are dozens of reasons to measure, and only their order of magnitude matters.
    brief = Evaluator(evaluator.graph, evaluator.calibration.brief())
    counting = _counting(progress, "measuring the reasons, group")
    return with_errors(plan, evaluator, brief, blocks_of(evaluator.graph), counting)


def _counting(progress: ProgressCallback, what: str) -> Progress:
    return lambda done, total: progress(what, min(done + 1, total), total)
