"""From a torch model to an ONNX graph whose nodes are named after the modules they came from."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto, NodeProto

from bertmp.core.errors import InputError
from bertmp.export.graph.module_groups import MODULE_KEY

if TYPE_CHECKING:
    from bertmp.model.heads import Head

OPSET = 18
OPSETS = range(18, 24)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_graph(model: Head, opset: int = OPSET) -> ModelProto:
    """The FP32 graph of a model.

    Inputs are INT64 `[batch, length]`, both dynamic; outputs are FP32 and have the head's names.

    Args:
        model: in evaluation mode, on the CPU.
        opset: the ONNX operator set, 18 to 23.

    Raises:
        InputError: an opset that is not supported.
    """
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is not supported", "--opset", f"use {OPSETS[0]} to {OPSETS[-1]}")
    graph = _trace(model, opset)
    name_after_modules(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _trace(model: Head, opset: int) -> ModelProto:
    import torch

    batch = torch.export.Dim("batch", min=1, max=65536)
    length = torch.export.Dim("length", min=1, max=model.config.max_position_embeddings)
    # Three separate tensors: the tracer takes a tensor that is passed twice for one input.
    example = tuple(torch.full((2, 7), fill, dtype=torch.int64) for fill in (1, 1, 0))
    with _quiet():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=list(model.outputs),
            dynamic_shapes=({0: batch, 1: length},) * len(INPUTS),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's warnings about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def name_after_modules(graph: ModelProto) -> None:
    """Renames nodes and tensors after modules, and drops the exporter's metadata (stack traces, paths).

    A node becomes `bert/encoder/layer.0/attention/self/query/MatMul`, its outputs the same with `_output`;
    a weight that the exporter transposed and gave a number becomes `bert.….query.weight/transposed`.
    """
    _name_nodes(graph.graph.node)
    _rename_tensors(graph, {**_value_names(graph), **_weight_names(graph)})
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del value.metadata_props[:]
    for tensor in graph.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    graph.doc_string = graph.graph.doc_string = ""
    graph.graph.name = "bert"


def _name_nodes(nodes: Any) -> None:
    taken: Counter[str] = Counter()
    for node in nodes:
        module = _scope(node)
        name = "/".join((*_path(module), node.op_type))
        number = taken[name]
        taken[name] += 1
        node.name = f"{name}_{number}" if number else name
        node.doc_string = ""
        del node.metadata_props[:]
        if module:
            node.metadata_props.add(key=MODULE_KEY, value=module)


def _scope(node: NodeProto) -> str:
    """The innermost module in the exporter's metadata: the entry before the operation's own name."""
    note = next((item.value for item in node.metadata_props if item.key == _SCOPES), "")
    scopes = [part.strip("' \"") for part in note.strip("[]").split(",")]
    return scopes[-2] if len(scopes) >= 2 and not scopes[-2].startswith("_empty") else ""


def _path(module: str) -> list[str]:
    """`bert.encoder.layer.0.attention` → bert, encoder, layer.0, attention."""
    parts: list[str] = []
    for part in module.split(".") if module else []:
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return parts


def _value_names(graph: ModelProto) -> dict[str, str]:
    outside = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    names = {}
    for node in graph.graph.node:
        for number, output in enumerate(node.output):
            if output and output not in outside:
                names[output] = f"{node.name}_output" + (f"_{number}" if number else "")
    return names


def _weight_names(graph: ModelProto) -> dict[str, str]:
    """Names for the initializers that the exporter numbered, after their first reader."""
    readers: dict[str, NodeProto] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, node)
    names: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for tensor in graph.graph.initializer:
        node = readers.get(tensor.name)
        if node is None or "." in tensor.name:
            continue
        module = next((item.value for item in node.metadata_props if item.key == MODULE_KEY), "")
        is_weight = module and node.op_type == "MatMul" and len(tensor.dims) == 2
        name = f"{module}.weight/transposed" if is_weight else f"{node.name}/constant"
        number = taken[name]
        taken[name] += 1
        names[tensor.name] = f"{name}_{number}" if number else name
    return names


def _rename_tensors(graph: ModelProto, names: dict[str, str]) -> None:
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.graph.value_info:
        value.name = names.get(value.name, value.name)
