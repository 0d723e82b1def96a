"""Reading graphs of any producer: checked and normalised for conversion, or refused in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto

from bertmp.core.errors import InputError, short_message
from bertmp.export.graph.attention import take_attention_apart
from bertmp.export.graph.declared_shapes import add_missing_shapes, drop_wrong_shapes
from bertmp.export.graph.nodes import DEQUANTIZE_OPS, QUANTIZE_OPS, is_onnx_op, subgraphs
from bertmp.export.graph.types import FLOAT, LOW_TYPES, element_types, opset_of
from bertmp.export.graph.weights import graph_in_memory, in_memory, is_large, without_weights

OLDEST_OPSET = 13
"""Before it, operators have no BF16 and quantisation has no axes; older graphs are converted to it."""

PLAN_KEY = "bertmp.precision_plan"
"""The graph's metadata property that holds the digest of the plan it was converted by."""

Note = Callable[[str], None]
"""Called with a sentence about how the graph was understood."""


def read_graph(path: Path, note: Note = lambda text: None) -> ModelProto:
    """Reads an FP32 graph and normalises it for planning: a supported opset, a unique name for every node.

    Args:
        path: the ONNX file; its external data lie beside it.
        note: called with what was changed and with what a conversion will leave as it is.

    Raises:
        InputError: the file is missing, not an ONNX graph, truncated, without its external data, of an opset
            that cannot be converted, converted already, or without any FP32 tensor.
    """
    path = Path(path)
    graph = load_graph(path, note)
    if graph.functions:
        graph = _inlined(graph, path)
    _remove_weights_from_inputs(graph, note)
    if opset_of(graph) < OLDEST_OPSET:
        graph = _converted(graph, path, note)
        drop_wrong_shapes(graph, note)
    name_nodes(graph)
    _require_fp32(graph, path)
    take_attention_apart(graph, note)
    _note_unconverted_parts(graph, note)
    return graph


def load_graph(path: Path, note: Note = lambda text: None) -> ModelProto:
    """Reads any valid ONNX file; large weights in external files are mapped into memory when used.

    Args:
        path: the ONNX file; its external data lie beside it.
        note: called with what was changed: declared shapes that the graph contradicts are dropped.

    Raises:
        InputError: the file is missing, not an ONNX graph, truncated, or without its external data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such graph", path, "check the path")
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions are not part of onnx's interface
        raise InputError("not an ONNX graph", path, f"export it again ({short_message(error)})") from error
    if not graph.graph.node:
        raise InputError("not an ONNX graph: it has no nodes", path, "export it again")
    add_missing_shapes(graph)
    external = [item for item in graph.graph.initializer if item.data_location == TensorProto.EXTERNAL]
    for tensor in external:
        _require_external_data(tensor, path)
    try:
        onnx.checker.check_model(str(path) if external else graph)
    except Exception as error:  # the checker also raises bare exceptions from native code
        raise InputError(
            "not a valid ONNX graph", path, f"export it again ({short_message(error)})"
        ) from error
    try:
        for tensor in external:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str((path.parent / entry.value).resolve())
            if not is_large(tensor):
                tensor.CopyFrom(in_memory(tensor))
    except Exception as error:  # onnx raises whatever the file system or its checker does
        raise InputError("the external data cannot be read", path, short_message(error)) from error
    drop_wrong_shapes(graph, note)
    return graph


def _require_external_data(tensor: TensorProto, path: Path) -> None:
    """Checks that the file of a tensor's data exists and is long enough."""
    entry = {item.key: item.value for item in tensor.external_data}
    data = path.parent / entry.get("location", "")
    if not data.is_file():
        raise InputError(
            f"the graph's external data '{data.name}' are missing", path, f"put them into {data.parent}"
        )
    needed = int(entry.get("offset", 0)) + int(entry.get("length", 0))
    if data.stat().st_size < needed:
        raise InputError(
            f"the external data are truncated: {data.stat().st_size} bytes of at least {needed}",
            data,
            "copy or export them again",
        )


def _inlined(graph: ModelProto, path: Path) -> ModelProto:
    from onnx import inliner

    try:
        inlined: ModelProto = inliner.inline_local_functions(graph_in_memory(graph))
    except Exception as error:
        raise InputError("the graph's functions cannot be inlined", path, short_message(error)) from error
    return inlined


def _remove_weights_from_inputs(graph: ModelProto, note: Note) -> None:
    """Old graphs list their weights as inputs, too; a plan is for these weights alone."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in weights]
    fixed = len(graph.graph.input) - len(inputs)
    if fixed:
        note(f"{fixed} weights that were listed as inputs are fixed at their values")
        del graph.graph.input[:]
        graph.graph.input.extend(inputs)
    graph.ir_version = max(graph.ir_version, 4)  # from it on, weights need not be inputs


def _converted(graph: ModelProto, path: Path, note: Note) -> ModelProto:
    from onnx import version_converter

    opset = opset_of(graph)
    try:
        newer: ModelProto = version_converter.convert_version(graph_in_memory(graph), OLDEST_OPSET)
        onnx.checker.check_model(newer)
    except Exception as error:
        raise InputError(
            f"opset {opset} cannot be converted to {OLDEST_OPSET} ({short_message(error)})",
            path,
            f"export the graph with opset {OLDEST_OPSET} or later",
        ) from error
    note(f"converted from opset {opset} to {OLDEST_OPSET}")
    return newer


def name_nodes(graph: ModelProto) -> None:
    """Gives every node a unique name: plans refer to nodes by name."""
    given = Counter(node.name for node in graph.graph.node)
    taken: set[str] = set()
    for number, node in enumerate(graph.graph.node):
        if not node.name or node.name in taken:
            name = f"{node.name or node.op_type}_{number}"
            while name in given or name in taken:
                name += "_"
            node.name = name
        taken.add(node.name)


def plan_digest(graph: ModelProto) -> str:
    """The digest of the plan that a graph was converted by; empty for a graph that was not."""
    return next((item.value for item in graph.metadata_props if item.key == PLAN_KEY), "")


def _require_fp32(graph: ModelProto, path: Path) -> None:
    """Refuses a graph that has nothing to convert, or has been converted already."""
    if plan_digest(graph):
        raise InputError("bertmp has converted the graph already", path, "give the FP32 graph")
    kinds = set(element_types(graph).values())
    for low in LOW_TYPES.values():
        if low.element in kinds:
            raise InputError(f"the graph is already in {low.label}", path, "give the FP32 graph")
    if FLOAT not in kinds:
        raise InputError("the graph has no FP32 tensor", path, "there is nothing to convert")


def _note_unconverted_parts(graph: ModelProto, note: Note) -> None:
    nodes = list(ir.from_proto(without_weights(graph)).graph)
    quantised = sum(node.op_type in (*QUANTIZE_OPS, *DEQUANTIZE_OPS) for node in nodes)
    if quantised:
        note(f"quantised regions are left as they are ({quantised} quantising nodes)")
    control = [node for node in nodes if subgraphs(node)]
    if control:
        note(f"control flow stays FP32: {_operators(control)}")
    foreign = [node for node in nodes if not is_onnx_op(node) and node not in control]
    if foreign:
        note(f"operators that are not ONNX's own stay FP32: {_operators(foreign)}")


def _operators(nodes: Sequence[ir.Node]) -> str:
    """Which operators, and how often: `2 If, 1 Loop`."""
    counts = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes)
    return ", ".join(f"{count} {operator}" for operator, count in counts.most_common())


def check_graph(graph: ModelProto, where: Path) -> None:
    """Runs the ONNX checker with shape and type inference.

    Raises:
        InputError: with what the checker found.
    """
    try:
        onnx.checker.check_model(without_weights(graph), full_check=True)
    except Exception as error:  # the checker also raises bare exceptions from native code
        raise InputError("the converted graph is invalid", where, short_message(error)) from error
