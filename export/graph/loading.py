"""Reading graphs that anybody made: found fit for planning, or refused in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from bertmp.core.errors import InputError
from bertmp.export.graph.ort_sessions import first_line
from bertmp.export.graph.storage import stored_size
from bertmp.export.graph.types import (
    FLOAT,
    LOW_TYPES,
    element_types,
    is_known,
    opset_of,
    subgraphs,
    without_weights,
)
from bertmp.export.precision.apply import plan_digest

OLDEST_OPSET = 13
"""Before it, operators have no BF16 and quantisation has no axes; older graphs are converted to it."""

_IN_MEMORY = 2**31 - 1
"""protobuf holds no message of more bytes: larger graphs are checked where they lie."""

_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")

Remark = Callable[[str], None]
"""Called with a sentence about how the graph was understood."""


def read_graph(path: Path, remark: Remark = lambda text: None) -> ModelProto:
    """Reads an FP32 graph and makes it fit for planning: in a known opset, every node with its own name.

    Args:
        path: the ONNX file; its external data lie beside it.
        remark: called with what was done to it and with what will be left alone.

    Errors: InputError where it is missing, no ONNX graph, truncated, without its external data, of an opset
    that cannot be converted, converted already, or without any FP32 tensor.
    """
    path = Path(path)
    graph = load_graph(path)
    if graph.functions:
        graph = _inlined(graph, path)
    _fix_weights(graph, remark)
    if opset_of(graph) < OLDEST_OPSET:
        graph = _converted(graph, path, remark)
    name_nodes(graph)
    _require_fp32(graph, path)
    _remark_on_regions(graph, remark)
    return graph


def load_graph(path: Path) -> ModelProto:
    """Reads any valid ONNX file as it is.

    Errors: InputError where it is missing, no ONNX graph, truncated, or without its external data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such graph", path, "check the path")
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions are no part of onnx's interface
        raise InputError("not an ONNX graph", path, f"export it again ({first_line(error)})") from error
    if not graph.graph.node:
        raise InputError("not an ONNX graph: it has no nodes", path, "export it again")
    for tensor in graph.graph.initializer:
        _require_external_data(tensor, path)
    _check(graph, path)
    try:
        onnx.load_external_data_for_model(graph, str(path.parent))
    except Exception as error:  # onnx raises whatever the file system or its checker does
        raise InputError("the external data cannot be read", path, first_line(error)) from error
    return graph


def _require_external_data(tensor: TensorProto, path: Path) -> None:
    """Errors: InputError where the file of a tensor's data is missing or too short."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return
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


def _check(graph: ModelProto, path: Path) -> None:
    external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.graph.initializer)
    try:
        onnx.checker.check_model(str(path) if external else graph)
    except Exception as error:  # the checker raises bare exceptions from native code, too
        raise InputError("not a valid ONNX graph", path, f"export it again ({first_line(error)})") from error


def _inlined(graph: ModelProto, path: Path) -> ModelProto:
    from onnx import inliner

    try:
        inlined: ModelProto = inliner.inline_local_functions(graph)
    except Exception as error:
        raise InputError("the graph's functions cannot be inlined", path, first_line(error)) from error
    return inlined


def _fix_weights(graph: ModelProto, remark: Remark) -> None:
    """Takes weights off the list of inputs, where old graphs have them: a plan is for these weights."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in weights]
    fixed = len(graph.graph.input) - len(inputs)
    if fixed:
        remark(f"{fixed} weights that were listed as inputs are fixed at their values")
        del graph.graph.input[:]
        graph.graph.input.extend(inputs)
    graph.ir_version = max(graph.ir_version, 4)  # from it on, weights need not be inputs


def _converted(graph: ModelProto, path: Path, remark: Remark) -> ModelProto:
    from onnx import version_converter

    opset = opset_of(graph)
    try:
        newer: ModelProto = version_converter.convert_version(graph, OLDEST_OPSET)
        onnx.checker.check_model(newer)
    except Exception as error:
        raise InputError(
            f"opset {opset} cannot be converted to {OLDEST_OPSET} ({first_line(error)})",
            path,
            f"export the graph with opset {OLDEST_OPSET} or later",
        ) from error
    remark(f"converted from opset {opset} to {OLDEST_OPSET}")
    return newer


def name_nodes(graph: ModelProto) -> None:
    """Gives every node a name of its own: plans speak of nodes by name."""
    given = Counter(node.name for node in graph.graph.node)
    taken: set[str] = set()
    for number, node in enumerate(graph.graph.node):
        if not node.name or node.name in taken:
            name = f"{node.name or node.op_type}_{number}"
            while name in given or name in taken:
                name += "_"
            node.name = name
        taken.add(node.name)


def _require_fp32(graph: ModelProto, path: Path) -> None:
    """Errors: InputError where there is nothing to convert, or somebody has converted it already."""
    if plan_digest(graph):
        raise InputError("bertmp has converted the graph already", path, "give the FP32 graph")
    kinds = set(element_types(graph).values())
    for low in LOW_TYPES.values():
        if low.element in kinds:
            raise InputError(f"the graph is already in {low.label}", path, "give the FP32 graph")
    if FLOAT not in kinds:
        raise InputError("the graph has no FP32 tensor", path, "there is nothing to convert")


def _remark_on_regions(graph: ModelProto, remark: Remark) -> None:
    """Says what will be left alone."""
    nodes = list(graph.graph.node)
    quantised = sum(node.op_type in _QUANTISED for node in nodes)
    if quantised:
        remark(f"quantised regions are left as they are ({quantised} quantising nodes)")
    control = [node for node in nodes if any(subgraphs(node))]
    if control:
        remark(f"control flow stays FP32 whole: {_some(control)}")
    foreign = [node for node in nodes if not is_known(node) and node not in control]
    if foreign:
        remark(f"operators that are none of ONNX's stay FP32: {_some(foreign)}")


def _some(nodes: list[NodeProto]) -> str:
    """Which operators, and how often: `2 If, 1 Loop`."""
    counts = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes)
    return ", ".join(f"{count} {operator}" for operator, count in counts.most_common())


def check_graph(graph: ModelProto, where: Path) -> None:
    """Runs the ONNX checker with shape and type inference.

    Errors: InputError naming what the checker found.
    """
    checked = without_weights(graph) if stored_size(graph) > _IN_MEMORY else graph
    try:
        onnx.checker.check_model(checked, full_check=True)
    except Exception as error:  # the checker raises bare exceptions from native code, too
        raise InputError("the converted graph is invalid", where, first_line(error)) from error
