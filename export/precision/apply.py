"""Applying a plan: the FP16 graph that follows from it, deterministically.

Every FP32 tensor takes the type of the node that writes it; where a reader runs in the other type, one cast
stands between them, however many readers there are. Weights are stored in the type of their readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bertmp.errors import InputError
from bertmp.export.precision.plan import CAST_PREFIX, NodePlan, PrecisionPlan
from bertmp.export.precision.types import FLOAT, FLOAT16, element_types

_TYPED_ATTRIBUTES = {
    "Cast": "to",
    "EyeLike": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype",
}


def apply_plan(graph: ModelProto, plan: PrecisionPlan) -> ModelProto:
    """The graph in mixed precision; `graph` itself is left as it is.

    Inputs and outputs keep their types. Nodes keep their names and order; inserted casts are named
    `precision_cast/TENSOR/to_fp16` or `/to_fp32`.

    Errors: InputError where the plan is not this graph's.
    """
    planned = {node.name: node for node in plan.nodes}
    if [node.name for node in graph.graph.node] != [node.name for node in plan.nodes]:
        raise InputError("the plan is for another graph", graph.graph.name, "make a plan for this one")
    return _Conversion(graph, planned).run()


@dataclass
class _Conversion:
    """One conversion at work: what has been written so far, and in which type."""

    source: ModelProto
    planned: dict[str, NodePlan]
    types: dict[str, int] = field(init=False)
    nodes: list[NodeProto] = field(default_factory=list)
    casts: set[str] = field(default_factory=set)
    written: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.types = element_types(self.source)

    def run(self) -> ModelProto:
        graph = self.source.graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FLOAT}
        self.written.update({value.name: FLOAT for value in graph.input if self.types[value.name] == FLOAT})
        self.outputs = {value.name for value in graph.output}
        self.stored: dict[tuple[str, int], TensorProto] = {}
        for node in graph.node:
            self._convert(node)
        for value in graph.output:
            self._settle_output(value.name)
        return self._assemble()

    def _convert(self, node: NodeProto) -> None:
        precision = self.planned[node.name].precision
        copy = NodeProto()
        copy.CopyFrom(node)
        if precision != "integer":
            kind = FLOAT if precision == "fp32" else FLOAT16
            copy.input[:] = [self._read(name, kind) for name in node.input]
            copy.output[:] = [self._write(name, kind) for name in node.output]
            if kind == FLOAT16:
                _retype(copy)
        self.nodes.append(copy)

    def _read(self, name: str, kind: int) -> str:
        """The name under which a reader of type `kind` finds tensor `name`."""
        if not name or self.types.get(name) != FLOAT:
            return name
        if name in self.weights:
            return self._weight(name, kind)
        have = self.written[name]
        source = f"{name}/fp16" if name in self.outputs and have == FLOAT16 else name
        return source if have == kind else self._cast(name, source, kind)

    def _write(self, name: str, kind: int) -> str:
        if not name or self.types.get(name) != FLOAT:
            return name
        self.written[name] = kind
        # A graph output keeps its name for the FP32 tensor that the user sees.
        return f"{name}/fp16" if name in self.outputs and kind == FLOAT16 else name

    def _cast(self, name: str, source: str, kind: int) -> str:
        target = f"{name}/to_{'fp16' if kind == FLOAT16 else 'fp32'}"
        if target not in self.casts:
            self.casts.add(target)
            self.nodes.append(
                helper.make_node("Cast", [source], [target], name=f"{CAST_PREFIX}{target}", to=kind)
            )
        return target

    def _weight(self, name: str, kind: int) -> str:
        """Weights are stored in the type of their readers; read in both types, they are stored in both."""
        tensor = self.weights[name]
        taken = (name, FLOAT) in self.stored or (name, FLOAT16) in self.stored
        if (name, kind) not in self.stored:
            stored = TensorProto()
            stored.CopyFrom(tensor)
            if kind == FLOAT16:
                stored = numpy_helper.from_array(to_fp16(numpy_helper.to_array(tensor)), name)
            if taken:
                stored.name = f"{name}/{'fp16' if kind == FLOAT16 else 'fp32'}"
            self.stored[name, kind] = stored
        return self.stored[name, kind].name

    def _settle_output(self, name: str) -> None:
        if self.written.get(name) == FLOAT16:
            source, target = f"{name}/fp16", f"{CAST_PREFIX}{name}/to_fp32"
            self.nodes.append(helper.make_node("Cast", [source], [name], name=target, to=FLOAT))

    def _assemble(self) -> ModelProto:
        result = ModelProto()
        result.CopyFrom(self.source)
        graph = result.graph
        kept = [tensor for tensor in graph.initializer if tensor.data_type != FLOAT]
        for field_ in (graph.node, graph.initializer, graph.value_info):
            del field_[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*kept, *self.stored.values()])
        return result


def to_fp16(values: np.ndarray) -> np.ndarray:
    """FP32 values rounded to FP16, to nearest even; the plan has made sure that none overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16)


def _retype(node: NodeProto) -> None:
    """Sets the attributes that name or hold FP32 to FP16."""
    typed = _TYPED_ATTRIBUTES.get(node.op_type)
    for attribute in node.attribute:
        if attribute.name == typed and attribute.i == FLOAT:
            attribute.i = FLOAT16
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
            attribute.t.CopyFrom(
                numpy_helper.from_array(to_fp16(numpy_helper.to_array(attribute.t)), attribute.t.name)
            )


def cast_count(nodes: Sequence[NodeProto]) -> int:
    """How many casts the conversion inserted."""
    return sum(node.name.startswith(CAST_PREFIX) for node in nodes)
