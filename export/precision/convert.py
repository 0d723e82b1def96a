"""`bertmp convert`: an FP32 graph in, a mixed-precision graph and its plan out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.export.graph.loading import check_graph, read_graph
from bertmp.export.graph.storage import stored_size, write_graph
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.pipeline import Planned, Report, plan_precision
from bertmp.export.precision.plan import PrecisionPlan, Target
from bertmp.export.precision.planner import make_plan
from bertmp.export.precision.precision_options import HEADROOM, PrecisionSettings


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        graph, plan: the files written.
        planned: the plan itself and what was measured.
        bytes, bytes_fp32: sizes of the two graphs' files, their external data included.
        seconds: wall time.
        remarks: how the graph was understood, and what of it was left alone.
    """

    graph: Path
    plan: Path
    planned: Planned
    bytes: int
    bytes_fp32: int
    seconds: float
    remarks: tuple[str, ...] = ()

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
            "remarks": list(self.remarks),
        }


def convert(
    source: Path,
    target: Path,
    *,
    keep_fp32: Sequence[str] = (),
    allow_fp16: Sequence[str] = (),
    to: Target = "fp16",
    headroom: float = HEADROOM,
    calibration: Path | None = None,
    tokenizer: Path | None = None,
    max_error: float | None = None,
    plan: Path | None = None,
    plan_file: Path | None = None,
    report: Report = lambda step: None,
) -> Conversion:
    """Converts an ONNX graph of a transformer encoder to FP16 with the nodes that need it in FP32.

    Args:
        source: the FP32 graph.
        target: the file to write; its plan is written beside it as `TARGET.precision-plan.json`, or to
            `plan_file`.
        keep_fp32: patterns of node names, operators or modules that stay FP32.
        allow_fp16: patterns of nodes that may run low although they normalise, reduce or are a softmax.
        to: `fp16` or `bf16`.
        headroom: how many times a tensor in the low type must fit into the type's range.
        calibration: a file of texts to measure ranges and errors on.
        tokenizer: the folder of these texts' tokenizer; the graph's own where it is not given.
        max_error: the largest change of an output value on these texts; nodes are raised to FP32 for it.
        plan: a plan to apply as it is, in place of making one.
        report: called with what is being done.

    Errors: InputError where `source` is missing, no ONNX graph, invalid or already in FP16, and as in
    `plan_precision`.
    """
    started = time.monotonic()
    source, target = Path(source), Path(target)
    settings = PrecisionSettings(keep_fp32, allow_fp16, to, headroom, calibration, max_error, plan)
    settings.check()
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError("the graph would be written over", source, "give the FP16 graph another name")
    if target.is_dir():
        raise InputError("a folder stands where the graph is to be", target, "name a file")
    plan_file = plan_file or target.with_name(f"{target.stem}.precision-plan.json")
    remarks: list[str] = []
    graph = read_graph(source, remarks.append)
    planned = plan_precision(graph, settings, tokenizer=tokenizer or source.parent, report=report)
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
        tuple(remarks),
    )


def plan_of(graph: ModelProto, keep_fp32: Sequence[str] = ()) -> tuple[PrecisionPlan, ModelProto]:
    """The plan for a graph in memory, and the graph that follows from it."""
    plan = make_plan(graph, keep_fp32)
    return plan, apply_plan(graph, plan)


__all__ = ["Conversion", "check_graph", "convert", "plan_of", "read_graph"]
