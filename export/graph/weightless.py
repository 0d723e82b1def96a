"""A graph without its weights: what can be copied, compared and inferred in no time, whatever its size."""

from __future__ import annotations

from onnx import ModelProto

_VALUES = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
_LISTS = ("opset_import", "metadata_props", "functions")
_GRAPH_LISTS = ("node", "input", "output", "value_info", "sparse_initializer", "metadata_props")


def shell_of(graph: ModelProto) -> ModelProto:
    """A copy of everything but the initializers."""
    shell = ModelProto()
    for name in _VALUES:
        if graph.HasField(name):
            setattr(shell, name, getattr(graph, name))
    for name in _LISTS:
        getattr(shell, name).extend(getattr(graph, name))
    shell.graph.name, shell.graph.doc_string = graph.graph.name, graph.graph.doc_string
    for name in _GRAPH_LISTS:
        getattr(shell.graph, name).extend(getattr(graph.graph, name))
    return shell
