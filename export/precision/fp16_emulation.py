"""The error of a plan, measured on real inputs.

The converted graph is run in FP32 arithmetic with every low tensor rounded to its type, so that
the result does not depend on a provider's kernels: ONNX Runtime's x86 provider omits the rounding between
two FP16 nodes and so hides overflow. What overflows becomes infinite, as it does on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.graph.loading import plan_digest
from bertmp.export.graph.nodes import DTYPE_ATTRIBUTES, EXACT_OPS
from bertmp.export.graph.ort_sessions import open_measuring_session, run
from bertmp.export.graph.types import BFLOAT16, FLOAT, FLOAT16, element_types
from bertmp.export.graph.weights import WeightlessGraph, placeholder, split_weights
from bertmp.export.precision.apply import apply_plan, apply_without_weights
from bertmp.export.precision.calibration import Calibration
from bertmp.export.precision.plan import PrecisionPlan

_LOW = (FLOAT16, BFLOAT16)


@dataclass(frozen=True)
class MeasuredError:
    """A plan's outputs against the FP32 graph's.

    Attributes:
        max_error, mean_error: absolute difference over all output values of all examples; infinite where one
            is not finite.
        flips: label decisions that changed: rows of `logits`, or tokens where each token has logits.
        finite: whether every output value is finite.
    """

    max_error: float
    mean_error: float
    flips: int
    finite: bool


Outputs = Sequence[np.ndarray]
"""What a graph returns for one feed, output by output."""


class Evaluator:
    """Measures plans for one graph on the same examples; the FP32 outputs are computed once.

    Args:
        graph: the FP32 graph.
        calibration: the examples.
        reference: the FP32 graph's floating-point outputs per feed, where they are known.
    """

    def __init__(
        self, graph: ModelProto, calibration: Calibration, reference: Sequence[Outputs] | None = None
    ) -> None:
        self.graph = graph
        self.calibration = calibration
        self.outputs = floating_outputs(graph)
        self._known = reference
        self._rounded: dict[tuple[str, int], np.ndarray] = {}

    def measure(self, plan: PrecisionPlan, feeds: Sequence[int] | None = None) -> MeasuredError:
        """The error of the graph that the plan makes.

        Args:
            feeds: the numbers of those that are run; None for all that errors are measured on.

        Raises:
            InputError: the plan is for another graph, the examples do not fit the graph's inputs, or the FP32
                graph's own outputs are not finite.
        """
        if plan_digest(self.graph):
            return self.compare(apply_plan(self.graph, plan))
        return self.running(plan).measure(feeds)

    def running(self, plan: PrecisionPlan) -> RunningPlan:
        """The graph that the plan makes, to be measured on more and more feeds."""
        return RunningPlan(self, rounded(self.applied(plan)))

    def applied(self, plan: PrecisionPlan) -> WeightlessGraph:
        """The graph that the plan makes; weights that the plans have in common are rounded once."""
        return apply_without_weights(self._light, plan, self._rounded)

    def compare(self, mixed: ModelProto) -> MeasuredError:
        """The error of any graph with the same inputs and outputs, whoever converted it."""
        return RunningPlan(self, rounded(split_weights(mixed))).measure()

    def judge(self, results: Mapping[int, Outputs]) -> MeasuredError:
        """The error of outputs.

        Args:
            results: number of a feed → what the graph under test returned for it.
        """
        worst, total, count, flips, finite = 0.0, 0.0, 0, 0, True
        for number, found in results.items():
            mask = self.calibration.masks[number]
            for name, expected, result in zip(self.outputs, self.reference[number], found, strict=True):
                expected, result = _without_padding(expected, mask), _without_padding(result, mask)
                if not np.isfinite(result).all():
                    finite = False
                    continue
                errors = np.abs(result.astype(np.float64) - expected)
                worst, total = max(worst, float(errors.max())), total + float(errors.sum())
                count += errors.size
                if "logits" in name and expected.shape[-1] > 1:
                    flips += int((result.argmax(-1) != expected.argmax(-1)).sum())
        if not finite:
            return MeasuredError(float("inf"), float("inf"), flips, False)
        return MeasuredError(worst, total / max(1, count), flips, True)

    @cached_property
    def reference(self) -> Sequence[Outputs]:
        """The FP32 graph's floating-point outputs per feed.

        Raises:
            InputError: they are not finite.
        """
        results = self._known if self._known is not None else self._run_fp32()
        if not all(np.isfinite(value).all() for batch in results for value in batch):
            raise InputError(
                "the FP32 graph itself returns infinities on the calibration examples",
                self.calibration.file,
                "fix the model or the examples",
            )
        return results

    def _run_fp32(self) -> list[Outputs]:
        session, file = open_measuring_session(self._light), self.calibration.file
        return [run(session, self.outputs, feed, file) for feed in self.calibration.fp32_feeds]

    @cached_property
    def _light(self) -> WeightlessGraph:
        return split_weights(self.graph)


class RunningPlan:
    """A graph in emulation, and what it returned so far.

    Args:
        evaluator: for the FP32 graph and the examples.
        graph: with every low tensor rounded.
    """

    def __init__(self, evaluator: Evaluator, graph: WeightlessGraph) -> None:
        _ = evaluator.reference  # infinities in it are an error before any other
        self._evaluator, self._session = evaluator, open_measuring_session(graph)
        self._found: dict[int, Outputs] = {}

    def measure(self, feeds: Sequence[int] | None = None) -> MeasuredError:
        """The error; see `Evaluator.measure`. No feed is run twice."""
        calibration, outputs = self._evaluator.calibration, self._evaluator.outputs
        given = calibration.fp32_feeds
        chosen = range(len(given))[: calibration.error_feeds] if feeds is None else feeds
        for at in chosen:
            if at not in self._found:
                self._found[at] = run(self._session, outputs, given[at], calibration.file)
        return self._evaluator.judge({at: self._found[at] for at in chosen})


def floating_outputs(graph: ModelProto) -> list[str]:
    """The outputs whose error is measured."""
    low = (FLOAT, *_LOW)
    return [value.name for value in graph.graph.output if value.type.tensor_type.elem_type in low]


def rounded(mixed: WeightlessGraph) -> WeightlessGraph:
    """A mixed-precision graph as FP32 arithmetic: every low tensor is rounded to its type, and is FP32.

    Inputs and outputs of a low precision become FP32. `mixed` is changed.
    """
    types = element_types(mixed.model)
    graph = mixed.model.graph
    nodes = [each for node in graph.node for each in _rounded(node, types)]
    weights = {
        name: values if values.dtype == np.float32 else values.astype(np.float32)
        for name, values in mixed.weights.items()
    }
    small = [_widened(tensor) for tensor in graph.initializer]
    for part in (graph.node, graph.initializer, graph.value_info):
        del part[:]
    graph.node.extend(nodes)
    graph.initializer.extend(small)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _LOW:
            value.type.tensor_type.elem_type = FLOAT
    return WeightlessGraph(mixed.model, weights)


def _rounded(node: NodeProto, types: dict[str, int]) -> list[NodeProto]:
    """The node on FP32, and the roundings of what it writes."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.name == DTYPE_ATTRIBUTES.get(node.op_type) and attribute.i in _LOW:
            attribute.i = FLOAT
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in _LOW:
            attribute.t.CopyFrom(_widened(attribute.t))
    if node.op_type in EXACT_OPS:
        return [copy]
    roundings: list[NodeProto] = []
    for position, name in enumerate(node.output):
        if name and types.get(name) in _LOW:
            exact, low = f"{name}/exact", f"{name}/low"
            copy.output[position] = exact
            roundings.append(helper.make_node("Cast", [exact], [low], name=low, to=types[name]))
            roundings.append(helper.make_node("Cast", [low], [name], name=f"{name}/rounded", to=FLOAT))
    return [copy, *roundings]


def _widened(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in _LOW:
        return tensor
    if tensor.data_location == TensorProto.EXTERNAL:
        return placeholder(tensor.name, tensor.dims, FLOAT)
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _without_padding(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The values without those of padding tokens, where there is one for each token."""
    return values[mask] if values.ndim >= 3 and values.shape[:2] == mask.shape else values
