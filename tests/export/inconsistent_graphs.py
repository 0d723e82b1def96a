"""Faults that make a classifier's graph answer a row otherwise in another batch: nodes added to its end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.export.engine_graphs import LABELS


class Tail:
    """Nodes after the graph's former `logits`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        for node in self.graph.node:
            node.output[:] = ["sound" if name == "logits" else name for name in node.output]

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"tail_{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: object, dtype: type = np.int64) -> str:
        name = f"tail_constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def size(self, axis: int) -> str:
        """The batch (0) or the length (1), INT64 `[1]`."""
        return self.node("Shape", "input_ids", start=axis, end=axis + 1)

    def rolled(self) -> str:
        """Every row's logits at the next row's place, the last one's at the first."""
        first, last, end = self.constant([0]), self.constant([-1]), self.constant([2**31])
        tail = self.node("Slice", "sound", last, end, first)
        return self.node("Concat", tail, self.node("Slice", "sound", first, last, first), axis=0)

    def finish(self, tensor: str) -> None:
        self.graph.node.append(helper.make_node("Identity", [tensor], ["logits"], name="tail"))


def roll_rows(model: onnx.ModelProto) -> None:
    """Each row gets its neighbour's answer; alone its own."""
    tail = Tail(model)
    tail.finish(tail.rolled())


def roll_large_batches(model: onnx.ModelProto) -> None:
    """The same in batches above 16 alone."""
    tail = Tail(model)
    large = tail.node("Greater", tail.size(0), tail.constant([16]))
    tail.finish(tail.node("Where", large, tail.rolled(), "sound"))


def centre_batch(model: onnx.ModelProto) -> None:
    """A batch's mean is subtracted, whatever its order; a row alone keeps its answer."""
    tail = Tail(model)
    mean = tail.node("ReduceMean", "sound", tail.constant([0]), keepdims=1)
    several = tail.node("Greater", tail.size(0), tail.constant([1]))
    tail.finish(tail.node("Where", several, tail.node("Sub", "sound", mean), "sound"))


def add_place(model: onnx.ModelProto) -> None:
    """A row's place in the batch is added to its first logit."""
    tail = Tail(model)
    zero, one = tail.constant(0), tail.constant(1)
    places = tail.node("Range", zero, tail.node("Squeeze", tail.size(0)), one)
    column = tail.node("Unsqueeze", tail.node("Cast", places, to=TensorProto.FLOAT), tail.constant([1]))
    weights = [[1.0, *(LABELS - 1) * [0.0]]]
    tail.finish(tail.node("Add", "sound", tail.node("Mul", column, tail.constant(weights, np.float32))))


def add_length(model: onnx.ModelProto) -> None:
    """A thousandth of the padded length is added to every logit: no label changes."""
    tail = Tail(model)
    length = tail.node("Cast", tail.size(1), to=TensorProto.FLOAT)
    tail.finish(tail.node("Add", "sound", tail.node("Mul", length, tail.constant([0.001], np.float32))))


Fault = Callable[[onnx.ModelProto], None]
