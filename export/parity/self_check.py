"""A stage's answers compared with each other, where the stage takes batches of any shape."""

from __future__ import annotations

from collections.abc import Callable

from bertmp.export.consistency.check import Consistency, Outputs, check_consistency
from bertmp.export.consistency.probe import graph_shapes
from bertmp.export.consistency.tolerance import Tolerance
from bertmp.export.parity.stage import Feed, ParityInputs
from bertmp.export.parity.tasks import TaskView


def check_graph(
    inputs: ParityInputs, answer: Callable[[Feed], Outputs], tolerance: Tolerance
) -> Consistency | None:
    """Compares the answers of a graph, which takes any shape, with each other; None without a probe."""
    if inputs.probe is None:
        return None
    shapes = graph_shapes(inputs.probe)
    return check_consistency(answer, inputs.probe, shapes, tolerance, labels_output(inputs.view))


def labels_output(view: TaskView) -> str:
    """The output whose largest number names a class; empty for heads without one."""
    return view.output if view.kind == "classes" else ""
