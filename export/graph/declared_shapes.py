"""Shapes that a graph declares and does not have, as tools leave them that change one part of a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import onnx
from onnx import ModelProto, ValueInfoProto

from bertmp.export.graph.weights import without_weights


def add_missing_shapes(graph: ModelProto) -> None:
    """Declares the shapes of outputs that have none: ONNX Runtime runs such graphs, the checker does not."""
    missing = [value.name for value in graph.graph.output if not _has_shape(value)]
    inferred = _inferred(graph) if missing else None
    if inferred is not None:
        _set_output_shapes(graph, inferred, missing)


def drop_wrong_shapes(graph: ModelProto, note: Callable[[str], None]) -> None:
    """Removes declared shapes that the operators contradict, so that what ONNX Runtime runs can be read.

    Dimensions of 0 or less of inputs and outputs become free. The shapes of tensors inside the graph and of
    its outputs are inferred again where they contradict what follows from the inputs. Element types are left
    alone: a graph whose types contradict each other is invalid, and stays so.

    Args:
        graph: changed in place.
        note: called with a sentence for each kind of declaration that was dropped.
    """
    freed = [value.name for value in (*graph.graph.input, *graph.graph.output) if _free_dimensions(value)]
    if freed:
        note(f"dimensions that are declared as 0 or less are taken for free: {', '.join(freed)}")
        _drop_shapes(graph.graph.value_info)  # derived from those dimensions
    if _inferred(graph) is not None:
        return
    # Shapes inside the graph help to infer those of the outputs, so they are the last to be given up.
    for inside, outputs in ((False, True), (True, False), (True, True)):
        trial = without_weights(graph)
        _drop_shapes((*(trial.graph.value_info if inside else ()), *(trial.graph.output if outputs else ())))
        inferred = _inferred(trial)
        if inferred is None:
            continue
        wrong = _contradicted(graph, inferred)
        _set_output_shapes(graph, inferred, wrong)
        if inside:
            _drop_shapes(graph.graph.value_info)
        where = wrong + (["tensors inside the graph"] if inside else [])
        note(f"declared shapes of {' and '.join(where)} contradict the operators: inferred again")
        return


def _contradicted(graph: ModelProto, inferred: ModelProto) -> list[str]:
    """The outputs whose declared shapes are not those inferred."""
    found = {value.name: value for value in inferred.graph.output if _has_shape(value)}
    return [
        value.name
        for value in graph.graph.output
        if value.name in found and not _agree(_dims(value), _dims(found[value.name]))
    ]


def _agree(declared: list[int | None], inferred: list[int | None]) -> bool:
    pairs = zip(declared, inferred, strict=False)
    return len(declared) == len(inferred) and all(
        one == other or None in (one, other) for one, other in pairs
    )


def _dims(value: ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


def _set_output_shapes(graph: ModelProto, inferred: ModelProto, names: Collection[str]) -> None:
    shapes = {
        value.name: value.type.tensor_type.shape for value in inferred.graph.output if _has_shape(value)
    }
    for value in graph.graph.output:
        if value.name in names and value.name in shapes:
            value.type.tensor_type.shape.CopyFrom(shapes[value.name])


def _free_dimensions(value: ValueInfoProto) -> bool:
    """Frees the dimensions of 0 or less; whether there were any."""
    wrong = [
        dimension
        for dimension in value.type.tensor_type.shape.dim
        if dimension.HasField("dim_value") and dimension.dim_value <= 0
    ]
    for dimension in wrong:
        dimension.Clear()
    return bool(wrong)


def _drop_shapes(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        value.type.tensor_type.ClearField("shape")


def _has_shape(value: ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _inferred(graph: ModelProto) -> ModelProto | None:
    """The graph with the types and shapes that follow from its operators; None where they contradict it."""
    try:
        inferred: ModelProto = onnx.shape_inference.infer_shapes(
            without_weights(graph), strict_mode=True, data_prop=True
        )
    except Exception:  # onnx raises its own and bare RuntimeErrors
        return None
    return inferred
