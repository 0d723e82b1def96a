"""From a torch model to an ONNX graph whose nodes are named after the modules they came from."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx import ModelProto

from bertmp.core.errors import InputError
from bertmp.export.graph.nodes import MODULE_KEY, module_of

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
    traced = _trace(model, opset)
    name_after_modules(traced)
    graph: ModelProto = ir.to_proto(traced)
    for item in (graph, graph.graph, *graph.graph.node, *graph.graph.initializer):
        item.doc_string = ""  # present though empty, as in version 0.1: a plan knows its graph by the bytes
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _trace(model: Head, opset: int) -> ir.Model:
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
    return program.model


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


def name_after_modules(model: ir.Model) -> None:
    """Renames nodes and tensors after modules, and drops the exporter's metadata (stack traces, paths).

    A node becomes `bert/encoder/layer.0/attention/self/query/MatMul`, its outputs the same with `_output`;
    a weight that the exporter transposed and gave a number becomes `bert.….query.weight/transposed`.
    """
    graph = model.graph
    _name_nodes(graph)
    _name_weights(graph)
    outputs = [output for node in graph for output in node.outputs]
    tensors = [value.const_value for value in graph.initializers.values()]
    for owner in (model, graph, *graph.inputs, *graph.initializers.values(), *outputs, *tensors):
        if owner is not None:
            owner.metadata_props.clear()
    graph.name = "bert"


def _name_nodes(graph: ir.Graph) -> None:
    taken: Counter[str] = Counter()
    for node in graph:
        module = _scope(node.metadata_props.get(_SCOPES, ""))
        node.name = _unique("/".join((*_path(module), node.op_type)), taken)
        node.metadata_props.clear()
        if module:
            node.metadata_props[MODULE_KEY] = module
        for number, output in enumerate(node.outputs):
            if output.name and not output.is_graph_output():
                output.name = f"{node.name}_output" + (f"_{number}" if number else "")


def _name_weights(graph: ir.Graph) -> None:
    """Names the initializers that the exporter numbered after their first reader."""
    taken: Counter[str] = Counter()
    for name, value in list(graph.initializers.items()):
        node = next(iter(value.consumers()), None)
        if node is None or "." in name:
            continue
        module = module_of(node)
        is_weight = module and node.op_type == "MatMul" and value.shape is not None and len(value.shape) == 2
        value.name = _unique(f"{module}.weight/transposed" if is_weight else f"{node.name}/constant", taken)


def _unique(name: str, taken: Counter[str]) -> str:
    """The name, with a number where it has been given already."""
    number = taken[name]
    taken[name] += 1
    return f"{name}_{number}" if number else name


def _scope(scopes: str) -> str:
    """The innermost module in the exporter's metadata: the entry before the operation's own name."""
    names = [part.strip("' \"") for part in scopes.strip("[]").split(",")]
    return names[-2] if len(names) >= 2 and not names[-2].startswith("_empty") else ""


def _path(module: str) -> list[str]:
    """`bert.encoder.layer.0.attention` → bert, encoder, layer.0, attention."""
    parts: list[str] = []
    for part in module.split(".") if module else []:
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return parts
