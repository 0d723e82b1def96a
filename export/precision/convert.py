"""`bertmp convert`: an FP32 graph in, a mixed-precision graph and its plan out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from bertmp.errors import InputError
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.plan import PrecisionPlan, Target
from bertmp.export.precision.planner import make_plan
from bertmp.export.precision.planning import Planned, Report, plan_precision
from bertmp.export.precision.settings import HEADROOM, PrecisionSettings
from bertmp.export.precision.types import FLOAT16
from bertmp.files import atomic_file


@dataclass(frozen=True)
class Conversion:
    """What a conversion made.

    Attributes:
        graph, plan: the files written.
        planned: the plan itself and what was measured.
        bytes, bytes_fp32: sizes of the two graphs' files.
        seconds: wall time.
    """

    graph: Path
    plan: Path
    planned: Planned
    bytes: int
    bytes_fp32: int
    seconds: float

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
    plan_file = plan_file or target.with_name(f"{target.stem}.precision-plan.json")
    graph = read_graph(source)
    name_unnamed_nodes(graph)
    planned = plan_precision(graph, settings, tokenizer=tokenizer or source.parent, report=report)
    check_graph(planned.graph, target)
    with atomic_file(target) as temporary:
        onnx.save(planned.graph, temporary)
    planned.plan.save(plan_file)
    return Conversion(
        target,
        plan_file,
        planned,
        target.stat().st_size,
        source.stat().st_size,
        time.monotonic() - started,
    )


def read_graph(path: Path) -> ModelProto:
    """Reads an ONNX file.

    Errors: InputError where it is missing, no ONNX graph, or already holds FP16 tensors.
    """
    if not path.is_file():
        raise InputError("no such graph", path, "check the path")
    try:
        graph = onnx.load(path)
        onnx.checker.check_model(graph)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "it cannot be parsed"
        raise InputError("not a valid ONNX graph", path, f"export it again ({first})") from error
    values = (*graph.graph.value_info, *graph.graph.input, *graph.graph.output)
    halves = any(t.data_type == FLOAT16 for t in graph.graph.initializer) or any(
        value.type.tensor_type.elem_type == FLOAT16 for value in values
    )
    if halves:
        raise InputError("the graph is already in FP16", path, "give the FP32 graph")
    return graph


def name_unnamed_nodes(graph: ModelProto) -> None:
    """Gives every node a name of its own: plans speak of nodes by name."""
    taken: set[str] = set()
    for number, node in enumerate(graph.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)


def check_graph(graph: ModelProto, where: Path) -> None:
    """Runs the ONNX checker with shape and type inference.

    Errors: InputError naming what the checker found.
    """
    try:
        onnx.checker.check_model(graph, full_check=True)
    except Exception as error:  # the checker raises bare exceptions from native code, too
        first = str(error).strip().splitlines()[0]
        raise InputError("the converted graph is invalid", where, first) from error


def plan_of(graph: ModelProto, keep_fp32: Sequence[str] = ()) -> tuple[PrecisionPlan, ModelProto]:
    """The plan for a graph in memory, and the graph that follows from it."""
    plan = make_plan(graph, keep_fp32)
    return plan, apply_plan(graph, plan)


__all__ = ["Conversion", "check_graph", "convert", "plan_of", "read_graph"]
