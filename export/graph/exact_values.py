"""Values that 16 bits spoil whatever the inputs are, so that no measurement on short texts shows it.

- Positions: FP16 counts exactly to 2048, BF16 to 256.
- Angles: the cosine of an angle of 1500 that is off by 0.5 is another number (rotary and sinusoidal
  positions).
- Guards of divisions: 1e-9 is 0 in FP16, and 0/0 is not a number (masked means, normalised embeddings).
- Numbers beyond the type's range that stand for "nothing here" outside of a softmax (maximum over tokens).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bertmp.export.graph.nodes import (
    MOVING_OPS,
    NORMALISATION_OPS,
    SOFTMAX_OPS,
    constant_tensors,
    input_names,
    name_of,
    output_names,
    readers_of,
)

ANGLE_OPS = ("Cos", "Sin", "Tan")

_BOUNDED_OPS = (*ANGLE_OPS, *SOFTMAX_OPS, *NORMALISATION_OPS, "Tanh", "Sigmoid", "Erf")
"""Operators whose results are small whatever they read."""

_FIRST_INPUT_OPS = MOVING_OPS | {"GatherElements", "GatherND", "OneHot", "ConstantOfShape"}
"""Operators whose results are values of their first input; the others say which."""

_LIGHT_OPS = MOVING_OPS | {"Add", "Sub", "Mul", "Div", "Neg", "Cast", "Concat"}

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)

_LARGE_INTEGER = 256
"""BF16, the coarser type, counts exactly to this."""


def position_tensors(nodes: Sequence[ir.Node], types: Mapping[str, int]) -> frozenset[str]:
    """The tensors that follow from positions and constants alone.

    Args:
        nodes: in graph order.
        types: tensor → element type.
    """
    counting = (
        name
        for node in nodes
        for name in output_names(node)
        if node.op_type == "Range" or (node.op_type == "CumSum" and types.get(name) not in _FLOATS)
    )
    tables = (name for name, tensor in _constants(nodes).items() if _holds_positions(tensor))
    return _following({*counting, *tables}, nodes, types)


def tensors_from_integers(nodes: Sequence[ir.Node], types: Mapping[str, int]) -> frozenset[str]:
    """The tensors that follow from integers and constants alone; arguments as in `position_tensors`."""
    casts = (
        node for node in nodes if node.op_type == "Cast" and types.get(input_names(node)[0]) in _INTEGERS
    )
    return _following({name for node in casts for name in output_names(node)}, nodes, types)


def _following(tensors: set[str], nodes: Sequence[ir.Node], types: Mapping[str, int]) -> frozenset[str]:
    """The tensors, and what is computed from them and constants alone, until it is bounded or Boolean."""
    found = set(tensors)
    constants = _constants(nodes).keys() - found
    for node in nodes:
        if node.op_type in (*_BOUNDED_OPS, "Shape", "Size"):
            continue
        read = {name for name in _value_inputs(node) if name} - constants
        if read and read <= found:
            found.update(name for name in output_names(node) if types.get(name) != ir.DataType.BOOL)
    return frozenset(found)


def _constants(nodes: Sequence[ir.Node]) -> dict[str, ir.TensorProtocol]:
    values = (value for node in nodes for value in node.inputs if value is not None)
    return constant_tensors({value.name or "": value for value in values})


def _holds_positions(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in _INTEGERS and tensor.size > 1 and int(np.max(tensor.numpy())) > _LARGE_INTEGER


def _value_inputs(node: ir.Node) -> list[str]:
    """The inputs whose values a node's results are made of."""
    names = input_names(node)
    if node.op_type in _FIRST_INPUT_OPS:
        return names[:1]
    return names[1:] if node.op_type == "Where" else names


def angle_nodes(nodes: Sequence[ir.Node], from_integers: frozenset[str]) -> dict[str, str]:
    """Node → the cosine or sine that it is, or whose angle it computes.

    Args:
        from_integers: what `tensors_from_integers` returns; other angles, which the network computes from
            its activations, are followed through light operators only.
    """
    found: dict[str, str] = {}
    for end in nodes:
        if end.op_type not in ANGLE_OPS:
            continue
        ahead: list[ir.Node | None] = [end]
        while ahead:
            node = ahead.pop()
            if node is None or name_of(node) in found:
                continue
            known = node is end or node.op_type in _LIGHT_OPS or _is_outer_product(node)
            known = known or bool(from_integers & set(output_names(node)))
            if known:
                found[name_of(node)] = name_of(end)
                ahead += [value.producer() for value in node.inputs if value is not None]
    return found


def _is_outer_product(node: ir.Node) -> bool:
    """Whether a product multiplies by a constant vector, as positions are by frequencies."""
    if node.op_type not in ("MatMul", "Gemm", "Einsum"):
        return False
    tensors = _constants([node]).values()
    return any(tensor.size == max(tensor.shape.numpy(), default=0) for tensor in tensors)


@dataclass(frozen=True)
class Guard:
    """A small constant that keeps a divisor from 0.

    Attributes:
        constant, value: the constant; 0 where it has been lost in a conversion, or never was one.
        division: the node that divides, or takes the logarithm.
    """

    constant: str
    value: float
    division: str


_LARGEST_GUARD = 1e-3
_BEFORE_DIVISION = MOVING_OPS | {"Sqrt", "Cast", "Pow"}


def guarded_nodes(nodes: Sequence[ir.Node], constants: Mapping[str, np.ndarray]) -> dict[str, Guard]:
    """Node → the guard that it is part of: from the constant to the division.

    Args:
        constants: floating-point constants by tensor.
    """
    found: dict[str, Guard] = {}
    for node in nodes:
        names = input_names(node)
        given = names[1:2] if node.op_type == "Clip" else names if node.op_type in ("Max", "Add") else []
        for name in given:
            value = _single(constants.get(name))
            if value is None or not 0 <= value < _LARGEST_GUARD:
                continue
            for passed in _to_divisions(node, constants):
                guard = Guard(name, value, name_of(passed[-1]))
                found.update({name_of(member): guard for member in (node, *passed)})
    return found


def _single(values: np.ndarray | None) -> float | None:
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def _to_divisions(node: ir.Node, constants: Mapping[str, np.ndarray]) -> Iterator[list[ir.Node]]:
    """The ways from a node's result to where something is divided by it, the division included."""
    ways = [[node]]
    while ways:
        way = ways.pop()
        result = way[-1].outputs[0]
        for reader in readers_of(result):
            if _divides_by(reader, result, constants):
                yield [*way[1:], reader]
            elif reader.op_type in _BEFORE_DIVISION and reader.inputs[0] is result:
                ways.append([*way, reader])


def _divides_by(node: ir.Node, value: ir.Value, constants: Mapping[str, np.ndarray]) -> bool:
    if node.op_type == "Div":
        return node.inputs[1] is value
    if node.op_type == "Pow":
        exponent = _single(constants.get(input_names(node)[1]))
        return node.inputs[0] is value and exponent is not None and exponent < 0
    return node.op_type in ("Reciprocal", "Log")


_ENTERING_OPS = MOVING_OPS | {"Where", "Max", "Min", "Add", "Sub", "Mul", "Concat", "ScatterND"}
"""Operators that put a constant among the values that they pass on."""


def nodes_reached_by(
    constant: str, nodes: Sequence[ir.Node], types: Mapping[str, int], barriers: frozenset[str]
) -> list[str]:
    """The nodes that read or write a number as large as a constant, up to where it becomes small again.

    It does in a softmax, a normalisation, a bounded function, a comparison, and where a large number is
    divided by a large one.

    Args:
        barriers: further nodes behind which it is small: those of decomposed normalisations.
    """
    large, reached = {constant}, []
    for node in nodes:
        names = input_names(node)
        read = large & {name for name in names if name}
        if not read or (constant in read and node.op_type not in _ENTERING_OPS):
            continue
        reached.append(name_of(node))
        is_ratio = node.op_type == "Div" and set(names) <= large
        if node.op_type not in _BOUNDED_OPS and not is_ratio and name_of(node) not in barriers:
            large.update(name for name in output_names(node) if types.get(name) in _FLOATS)
    return reached
