"""Applying a plan: the mixed-precision graph that follows from it, deterministically.

Every FP32 tensor takes the type of the node that writes it; for all readers in the other type together, one
cast is inserted. Weights are stored in the type of their readers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bertmp.core.errors import InputError
from bertmp.export.graph.loading import PLAN_KEY, plan_digest
from bertmp.export.graph.nodes import DTYPE_AGNOSTIC_OPS, DTYPE_ATTRIBUTES
from bertmp.export.graph.types import FLOAT, LOW_TYPES, LowType, element_types
from bertmp.export.graph.weights import WeightlessGraph, placeholder, tensor_values, without_initializers
from bertmp.export.precision.plan import CAST_PREFIX, PrecisionPlan


def apply_plan(graph: ModelProto, plan: PrecisionPlan) -> ModelProto:
    """Converts a graph to mixed precision; `graph` itself is left as it is.

    Inputs and outputs keep their types. Nodes keep their names and order; inserted casts are named
    `precision_cast/TENSOR/to_fp16`, `/to_bf16` or `/to_fp32`. A graph that was converted
    by this plan is returned as it is.

    Raises:
        InputError: the plan is for another graph.
    """
    if plan_digest(graph) == plan.digest():
        return graph
    _check_belongs(plan, graph)
    return _Conversion(graph, plan).run()


def apply_without_weights(
    graph: WeightlessGraph, plan: PrecisionPlan, rounded: dict[tuple[str, int], np.ndarray]
) -> WeightlessGraph:
    """As `apply_plan`, with the large weights as FP32 arrays that hold the values of their new types.

    Args:
        graph: an FP32 graph, not one that is converted already.
        rounded: weights that earlier calls for this graph have rounded; new ones are added.

    Raises:
        InputError: the plan is for another graph.
    """
    _check_belongs(plan, graph.model)
    conversion = _WeightlessConversion(graph, plan, rounded)
    model = conversion.run()
    left = {name: values for name, values in graph.weights.items() if name not in conversion.weights}
    return WeightlessGraph(model, left | conversion.values)


def _check_belongs(plan: PrecisionPlan, graph: ModelProto) -> None:
    if plan_digest(graph):
        what = "the graph is already converted, by another plan"
        raise InputError(what, graph.graph.name, "give the FP32 graph")
    if [(node.name, node.op_type) for node in graph.graph.node] != [(n.name, n.op) for n in plan.nodes]:
        raise InputError("the plan is for another graph", graph.graph.name, "make a plan for this one")


class _Conversion:
    """The state of one conversion: what has been written so far, and in which type."""

    def __init__(self, source: ModelProto, plan: PrecisionPlan) -> None:
        self.source, self.plan = source, plan
        self.low: LowType = LOW_TYPES[plan.target]
        self.label = {FLOAT: "fp32", self.low.element: self.low.name}
        self.other = {FLOAT: self.low.element, self.low.element: FLOAT}
        self.types = element_types(source)
        self.precision = {node.name: node.precision for node in plan.nodes}
        self.replaced = {item.tensor: item for item in plan.rewrites}
        self.nodes: list[NodeProto] = []
        self.names: dict[tuple[str, int], str] = {}  # tensor and type → the name it has in that type
        self.written: dict[str, str] = {}  # tensor → the name of what its writer produces
        self.cast_from: dict[str, str] = {}  # output of one of the graph's own casts → the tensor it reads
        self.stored: dict[tuple[str, int], TensorProto] = {}

    def run(self) -> ModelProto:
        graph = self.source.graph
        self.outputs = {value.name for value in graph.output}
        inputs = {value.name for value in graph.input}
        self.weights = {
            tensor.name: tensor
            for tensor in graph.initializer
            if tensor.data_type == FLOAT and tensor.name not in inputs
        }
        self.names.update({(name, FLOAT): name for name in inputs if self.types[name] == FLOAT})
        for node in graph.node:
            self._convert(node)
        for name in self.outputs & self.weights.keys():
            self._weight(name, FLOAT)
        return self._assemble()

    def _convert(self, node: NodeProto) -> None:
        precision = self.precision[node.name]
        kind = self.low.element if precision == self.low.name else FLOAT
        copy = NodeProto()
        copy.CopyFrom(node)
        if _constant_value(node) is not None:
            self._keep_constant(copy, kind)
            return
        if node.op_type in DTYPE_AGNOSTIC_OPS:
            copy.input[:] = [self._read_any(name) for name in node.input]
        elif precision != "integer":
            copy.input[:] = [self._read(name, kind) for name in node.input]
            self._rename_captured(copy, kind)
        if precision != "integer":
            copy.output[:] = [self._write(name, kind) for name in node.output]
            if kind != FLOAT:
                _retype(copy, self.low)
        self.nodes.append(copy)
        if node.op_type == "Cast":
            self.cast_from[node.output[0]] = node.input[0]
        self._cast_outputs(node)

    def _read(self, name: str, kind: int) -> str:
        """The name under which a reader of type `kind` finds tensor `name`."""
        if not name or self.types.get(name) != FLOAT:
            return name
        if name in self.weights:
            return self._weight(name, kind)
        return self.names.get((name, kind)) or self._cast(name, kind)

    def _read_any(self, name: str) -> str:
        """The name under which a reader that takes every type finds tensor `name`."""
        if name in self.weights:
            return self._weight(name, FLOAT)
        return self.written.get(name, name)

    def _rename_captured(self, node: NodeProto, kind: int) -> None:
        """Subgraphs read tensors of the graph around them by name, which may have changed."""
        names = {name: self._read(name, kind) for name in _captured(node)}
        changed = {name: new for name, new in names.items() if new != name}
        if changed:
            for graph in _subgraphs(node):
                _rename(graph, changed)

    def _write(self, name: str, kind: int) -> str:
        if not name or self.types.get(name) != FLOAT:
            return name
        # A graph output keeps its name for the FP32 tensor that the user sees.
        written = f"{name}/{self.low.name}" if name in self.outputs and kind != FLOAT else name
        self.names[name, kind] = self.written[name] = written
        return written

    def _cast(self, name: str, kind: int, target: str = "") -> str:
        """Inserts the cast of a tensor to a type."""
        origin = self.cast_from.get(name)
        if origin is not None and self.types.get(origin) == FLOAT and not target:
            return self._read(origin, kind)  # the graph's own cast changes nothing
        suffix = f"{name}/to_{self.label[kind]}"
        # What one of the graph's own casts made is cast from the same source: no two casts in a row.
        source = self.names[name, self.other[kind]] if origin is None else self._read_any(origin)
        cast = target or suffix
        self.nodes.append(helper.make_node("Cast", [source], [cast], name=f"{CAST_PREFIX}{suffix}", to=kind))
        self.names[name, kind] = cast
        return cast

    def _cast_outputs(self, node: NodeProto) -> None:
        """Casts the graph outputs that a low-precision node writes back to FP32, under their own names."""
        for name in node.output:
            low_only = (name, self.low.element) in self.names and (name, FLOAT) not in self.names
            if name in self.outputs and low_only:
                self._cast(name, FLOAT, target=name)

    def _weight(self, name: str, kind: int) -> str:
        """Weights are stored in the type of their readers; read in both types, they are stored in both."""
        if (name, kind) not in self.stored:
            first = (name, self.other[kind]) not in self.stored
            keeps = kind == FLOAT if name in self.outputs else first
            made = name if keeps else f"{name}/{self.label[kind]}"
            self.stored[name, kind] = self._tensor(self.weights[name], name, kind, made)
        return self.stored[name, kind].name

    def _tensor(self, tensor: TensorProto, owner: str, kind: int, name: str) -> TensorProto:
        """A weight in a type, with the plan's rewrite applied."""
        rewrite = self.replaced.get(owner)
        if kind == FLOAT and rewrite is None:
            stored = TensorProto()
            stored.CopyFrom(tensor)
            stored.name = name
            return stored
        values = tensor_values(tensor)
        if rewrite is not None:
            values = self._rewritten(values, owner)
        return numpy_helper.from_array(values if kind == FLOAT else self.low.rounded(values), name)

    def _rewritten(self, values: np.ndarray, owner: str) -> np.ndarray:
        rewrite = self.replaced[owner]
        return np.where(values == np.float32(rewrite.before), np.float32(rewrite.after), values)

    def _keep_constant(self, node: NodeProto, kind: int) -> None:
        """A Constant node holds its value in its own type; readers in the other get a weight."""
        name = node.output[0]
        tensor = numpy_helper.from_array(np.asarray(_constant_value(node), np.float32), name)
        value = self._tensor(tensor, name, kind, name)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", value))
        self.nodes.append(node)
        self.weights[name] = tensor
        self.stored[name, kind] = value

    def _assemble(self) -> ModelProto:
        source, result = self.source, without_initializers(self.source)
        result.metadata_props.add(key=PLAN_KEY, value=self.plan.digest())
        graph = result.graph
        del graph.node[:], graph.value_info[:]
        written = {name for node in source.graph.node for name in node.output}
        graph.node.extend(self.nodes)
        graph.initializer.extend(t for t in source.graph.initializer if t.name not in self.weights)
        graph.initializer.extend(tensor for tensor in self.stored.values() if tensor.name not in written)
        return result


class _WeightlessConversion(_Conversion):
    """A conversion of a graph without its large weights, whose values are rounded apart."""

    def __init__(
        self, source: WeightlessGraph, plan: PrecisionPlan, rounded: dict[tuple[str, int], np.ndarray]
    ) -> None:
        super().__init__(source.model, plan)
        self.given, self.rounded = source.weights, rounded
        self.values: dict[str, np.ndarray] = {}  # the weights of the converted graph

    def _tensor(self, tensor: TensorProto, owner: str, kind: int, name: str) -> TensorProto:
        if owner not in self.given:
            return super()._tensor(tensor, owner, kind, name)
        values = self.given[owner]
        if owner in self.replaced:
            values = self._rewritten(values, owner)
            values = values if kind == FLOAT else self.low.rounded(values).astype(np.float32)
        elif kind != FLOAT:
            if (owner, kind) not in self.rounded:
                self.rounded[owner, kind] = self.low.rounded(values).astype(np.float32)
            values = self.rounded[owner, kind]
        self.values[name] = values
        return placeholder(name, tensor.dims, kind)


def _constant_value(node: NodeProto) -> np.ndarray | None:
    """The FP32 value of a Constant node; None for other nodes and types."""
    for item in node.attribute if node.op_type == "Constant" else ():
        if item.name == "value" and item.t.data_type == FLOAT:
            return np.asarray(numpy_helper.to_array(item.t))
        if item.name == "value_float":
            return np.array(item.f, np.float32)
        if item.name == "value_floats":
            return np.array(item.floats, np.float32)
    return None


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _captured(node: NodeProto) -> list[str]:
    """Names that a node's subgraphs read from the graph around them, each once."""
    names: dict[str, None] = {}
    for graph in _subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            names.update(
                (name, None) for name in (*inner.input, *_captured(inner)) if name and name not in own
            )
            own.update(inner.output)
        names.update((value.name, None) for value in graph.output if value.name not in own)
    return list(names)


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Gives the tensors that a subgraph captures other names, in the subgraphs inside it, too."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for inner in _subgraphs(node):
            _rename(inner, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _retype(node: NodeProto, low: LowType) -> None:
    """Sets the attributes that name or hold FP32 to the low precision."""
    typed = DTYPE_ATTRIBUTES.get(node.op_type)
    for attribute in node.attribute:
        if attribute.name == typed and attribute.i == FLOAT:
            attribute.i = low.element
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
            values = low.rounded(numpy_helper.to_array(attribute.t))
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def inserted_casts(graph: ModelProto) -> list[NodeProto]:
    """The casts that the conversion inserted."""
    return [node for node in graph.graph.node if node.name.startswith(CAST_PREFIX)]
