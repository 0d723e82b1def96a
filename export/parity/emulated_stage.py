"""The low-precision graph with every 16-bit tensor rounded as a GPU rounds it.

A GPU stores what a node writes in 16 bits before the next one reads it. The x86 provider of ONNX Runtime has
no 16-bit kernels: it computes in FP32 from one node to the next, so that nothing overflows and only the
weights' rounding shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertmp.core.errors import InputError
from bertmp.export.consistency.check import Outputs
from bertmp.export.graph.loading import load_graph
from bertmp.export.graph.ort_sessions import open_session
from bertmp.export.graph.weights import split_weights
from bertmp.export.parity.self_check import check_graph
from bertmp.export.parity.stage import Feed, ParityInputs, Skipped, StageOutput, answer_all
from bertmp.export.precision.fp16_emulation import rounded


@dataclass(frozen=True)
class EmulatedStage:
    """The low-precision graph in FP32 arithmetic with every 16-bit tensor rounded to its type, on the CPU.

    Attributes:
        name: `onnx-fp16-emulated` or `onnx-bf16-emulated`.
        graph: the ONNX file; None where the bundle has no such graph.
        precision: `fp16` or `bf16`.
    """

    name: str
    graph: Path | None
    precision: str

    def run(self, inputs: ParityInputs, advance: Callable[[int], None]) -> StageOutput | Skipped:
        """Answers all examples.

        Raises:
            MissingComponent: ONNX Runtime is not installed.
        """
        if self.graph is None:
            return Skipped("the bundle has no low-precision graph")
        session = _open(self.graph)
        names = [value.name for value in session.get_outputs()]
        wanted = [name for name in inputs.view.outputs if name in names]

        def answer(feed: Feed) -> Outputs:
            return dict(zip(wanted, session.run(wanted, feed), strict=True))

        answered = answer_all(inputs, answer, advance)
        low = self.precision.upper()
        arithmetic = f"FP32, every {low} tensor rounded to {low} as on a GPU, infinite beyond its range"
        details: dict[str, object] = {"runs on": "ONNX Runtime, CPU", "arithmetic": arithmetic}
        found = check_graph(inputs, answer, inputs.low_tolerance)
        return replace(answered, details=details, consistency=found)


def _open(file: Path) -> Any:
    """A session of the graph in emulation.

    Patterns are not fused, as a fused node would not round inside. Memory is planned for each shape, unlike
    in `open_measuring_session`: every shape comes often, and the runs take a fifth less.
    """
    try:
        return open_session(rounded(split_weights(load_graph(file))), optimization="basic")
    except InputError as error:  # the stage failed, not what the user typed
        raise error.__cause__ or RuntimeError(str(error)) from None
