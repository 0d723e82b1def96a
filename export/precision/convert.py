"""`bertmp convert`: an FP32 graph in, a mixed-precision graph and its plan out.

From the options to a plan and the converted graph: ranges, rules, search, conversion, in this order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.core.options import keywords_of
from bertmp.core.progress import ProgressCallback
from bertmp.export.export_options import ConvertOptions, PrecisionOptions
from bertmp.export.graph.loading import check_graph, read_graph
from bertmp.export.graph.nodes import blocks_of
from bertmp.export.graph.weights import stored_size, write_graph
from bertmp.export.precision.apply import apply_plan, inserted_casts
from bertmp.export.precision.calibration import read_calibration, read_tokenizer
from bertmp.export.precision.fp16_emulation import Evaluator, floating_outputs
from bertmp.export.precision.graph_inputs import LONGEST, UnknownInput
from bertmp.export.precision.made_up import made_up_inputs, made_up_note
from bertmp.export.precision.plan import PrecisionPlan, Reason, SearchRecord
from bertmp.export.precision.planner import Planner, graph_sha256
from bertmp.export.precision.ranges import Progress, Ranges, measure, measure_with_outputs, trained_ranges
from bertmp.export.precision.reasons import with_errors
from bertmp.export.precision.search import measured, search


@dataclass(frozen=True)
class Planned:
    """A plan and the graph converted by it.

    Attributes:
        plan: the plan.
        graph: the mixed-precision graph.
        casts: casts in it that the conversion inserted.
        notes: which examples nobody gave, and what followed from that.
    """

    plan: PrecisionPlan
    graph: ModelProto
    casts: int
    notes: tuple[str, ...] = ()

    @property
    def meets_budget(self) -> bool:
        """Whether the measured error is finite and within the budget, where there is one."""
        search = self.plan.search
        return search is None or (search.bound_by is None and search.error < float("inf"))

    def summary(self) -> dict[str, Any]:
        """Counts and measured errors as plain values: for the manifest and `--json`."""
        plan, ranges, search = self.plan, self.plan.ranges, self.plan.search
        found: dict[str, Any] = {"nodes": plan.counts(), "casts": self.casts, "rewrites": len(plan.rewrites)}
        if ranges is not None:
            least = min(ranges.blocks, key=ranges.blocks.__getitem__, default=None)
            found["ranges"] = {
                **{name: getattr(ranges, name) for name in ("source", "file", "texts")},
                "tightest_block": least,
                "headroom": ranges.blocks[least] if least is not None else None,
            }
        if search is not None:
            measured = {name: value for name, value in vars(search).items() if name != "steps"}
            found["measured"] = measured | {"error": search.error if search.error < float("inf") else None}
        return found


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        graph, plan: the files written.
        planned: the plan itself and what was measured.
        bytes, bytes_fp32: sizes of the two graphs' files, their external data included.
        seconds: wall time.
        notes: how the graph was understood, and which parts of it were left as they are.
    """

    graph: Path
    plan: Path
    planned: Planned
    bytes: int
    bytes_fp32: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def nodes(self) -> dict[str, int]:
        """Precision → number of nodes."""
        return self.planned.plan.counts()

    @property
    def casts(self) -> int:
        """Casts inserted."""
        return self.planned.casts

    @property
    def size_ratio(self) -> float:
        """The mixed-precision file's size over the FP32 file's."""
        return self.bytes / self.bytes_fp32

    def to_json(self) -> dict[str, Any]:
        return {
            "graph": str(self.graph),
            "plan": str(self.plan),
            **self.planned.summary(),
            "bytes": self.bytes,
            "bytes_fp32": self.bytes_fp32,
            "size_ratio": self.size_ratio,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


@keywords_of(ConvertOptions)
def convert(options: ConvertOptions) -> Conversion:
    """Converts an ONNX graph of a transformer encoder to low precision, with the nodes that need it in FP32.

    Raises:
        InputError: `source` is missing, not an ONNX graph, invalid or already in FP16; and as in
            `plan_precision`.
    """
    started = time.monotonic()
    source, target = options.source, options.target
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError("the output would overwrite the input", source, "give the output another name")
    if target.is_dir():
        raise InputError("the output is a folder", target, "give a file name")
    if options.tokenizer is not None:
        read_tokenizer(options.tokenizer, LONGEST)
    plan_file = options.plan_file or target.with_name(f"{target.stem}.precision-plan.json")
    notes: list[str] = []
    graph = read_graph(source, notes.append)
    planned = plan_precision(
        graph, options, tokenizer=options.tokenizer or source.parent, inputs=options.inputs
    )
    check_graph(planned.graph, target)
    written = write_graph(planned.graph, target)
    planned.plan.save(plan_file)
    return Conversion(
        target,
        plan_file,
        planned,
        sum(file.stat().st_size for file in written),
        max(source.stat().st_size, stored_size(graph)),
        time.monotonic() - started,
        (*notes, *planned.notes),
    )


def plan_precision(
    graph: ModelProto,
    options: PrecisionOptions,
    *,
    tokenizer: Path,
    trained: Path | None = None,
    inputs: Sequence[str] = (),
) -> Planned:
    """Makes a plan by the options, or reads the one they name, and applies it.

    Args:
        graph: an FP32 graph whose nodes have unique names.
        tokenizer: the folder of the tokenizer for the calibration examples.
        inputs: see `ConvertOptions.inputs`.
        trained: the ranges that training recorded, used where there is no calibration file.

    Raises:
        InputError: the calibration file or the tokenizer cannot be used, the examples do not fit the graph,
            or the plan is for another graph.
    """
    progress, calibration = options.progress, None
    if options.calibration:
        calibration = read_calibration(
            options.calibration,
            tokenizer,
            graph,
            options.columns(),
            names=inputs,
            progress=options.progress,
        )
    plan = _loaded(graph, options.plan) if options.plan is not None else None
    ranges, evaluator, note = None, None, ""
    if calibration is not None:
        counting = _counting(progress, "measuring ranges, batch")
        ranges, outputs = measure_with_outputs(graph, calibration, floating_outputs(graph), counting)
        evaluator = Evaluator(graph, calibration, outputs)
    elif trained is not None and plan is None:
        ranges = trained_ranges(trained, graph)
    elif plan is None:
        ranges, note = _made_up_ranges(graph, tokenizer, inputs, progress)
    if plan is None:
        plan = _planned(graph, options, ranges, evaluator)
    elif evaluator is not None:
        own = PrecisionOptions(precision=plan.target, headroom=plan.headroom)
        plan = replace(plan, ranges=Planner(graph, own, ranges).range_record)
        progress("measuring the error")
        found = evaluator.measure(plan)
        texts = evaluator.calibration.texts
        plan = replace(plan, search=SearchRecord(None, found.max_error, found.flips, texts))
    if evaluator is not None and ranges is not None:
        counting = _counting(progress, "measuring the reasons, group")
        plan = with_errors(plan, evaluator, ranges, blocks_of(graph), counting)
    progress("converting")
    mixed = apply_plan(graph, plan)
    return Planned(plan, mixed, len(inserted_casts(mixed)), (note,) if note else ())


def _made_up_ranges(
    graph: ModelProto, tokenizer: Path, inputs: Sequence[str], progress: ProgressCallback
) -> tuple[Ranges | None, str]:
    """The ranges on inputs made from the vocabulary, None where they cannot be measured; and what to say."""
    try:
        made_up = made_up_inputs(graph, tokenizer, inputs)
        found = measure(graph, made_up, _counting(progress, "measuring ranges, batch"))
    except UnknownInput as error:
        return None, f"ranges: not measured, {error}"
    except InputError as error:
        if error.where == "--input":
            raise
        return (
            None,
            f"ranges: not measured, the graph does not run on inputs made from the vocabulary: {error.todo}",
        )
    return found, made_up_note(made_up)


def _planned(
    graph: ModelProto, options: PrecisionOptions, ranges: Ranges | None, evaluator: Evaluator | None
) -> PrecisionPlan:
    options.progress("deciding by the rules")
    planner = Planner(graph, options, ranges)
    if evaluator is None:
        return planner.plan()
    if options.max_error is None:
        options.progress("measuring the error")
        return measured(planner, evaluator)
    counting = _counting(options.progress, "searching, plan at most")
    return search(planner, evaluator, options.max_error, blocks_of(graph), counting)


def _loaded(graph: ModelProto, file: Path) -> PrecisionPlan:
    """A plan from the disk, perhaps edited, without its measured errors.

    Raises:
        InputError: the plan is for another graph, does not list the graph's nodes, or gives no precision to
            one of floating point.
    """
    plan = PrecisionPlan.load(file)
    if plan.graph_sha256 != graph_sha256(graph):
        raise InputError("the plan is for another graph", file, "make a plan for this one")
    known = {node.name: node for node in Planner(graph, PrecisionOptions(precision=plan.target)).plan().nodes}
    listed = {node.name for node in plan.nodes}
    for name in [*(listed - known.keys()), *(known.keys() - listed)]:
        what = "names a node that the graph does not have" if name in listed else "leaves out the node"
        raise InputError(f"the plan {what}: {name}", file, "edit only the precisions")
    for node in plan.nodes:
        wanted = known[node.name].precision
        if (node.precision == "integer") != (wanted == "integer"):
            kind = "touches no" if node.precision != "integer" else "touches a"
            what = f"the plan has {node.name} in {node.precision}, which {kind} floating-point tensor"
            raise InputError(what, file, f"write {wanted}")
    unexplained = [node.name for node in plan.kept_fp32() if not node.reasons]
    plan = plan.with_precision(unexplained, "fp32", Reason("edited", "the given plan sets it"))
    return replace(plan, nodes=tuple(replace(node, error=None) for node in plan.nodes), search=None)


def _counting(progress: ProgressCallback, what: str) -> Progress:
    return lambda done, total: progress(what, min(done + 1, total), total)
