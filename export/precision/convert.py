"""`bertmp convert`: an FP32 graph in, a mixed-precision graph and its plan out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.core.options import keywords_of
from bertmp.export.graph.loading import check_graph, read_graph
from bertmp.export.graph.weights import stored_size, write_graph
from bertmp.export.precision.pipeline import Planned, plan_precision
from bertmp.export.precision.precision_options import ConvertOptions


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
    plan_file = options.plan_file or target.with_name(f"{target.stem}.precision-plan.json")
    notes: list[str] = []
    graph = read_graph(source, notes.append)
    planned = plan_precision(graph, options, tokenizer=options.tokenizer or source.parent)
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
        tuple(notes),
    )
