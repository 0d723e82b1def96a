"""The tables of embeddings of a graph, and the most tokens that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from onnx import ModelProto, NodeProto

from bertmp.export.graph.nodes import MOVING_OPS
from bertmp.export.graph.weights import split_weights
from bertmp.export.precision.graph_inputs import LONGEST, GraphInputs, greatest_length
from bertmp.export.precision.length_limit import longest_length

_FEWEST_POSITIONS = 16
"""A table of fewer rows holds no positions."""
_PADDING_POSITIONS = 2
"""RoBERTa counts the tokens before each; its first positions are padding's."""


def greatest_length_of(graph: ModelProto, inputs: GraphInputs, tokenizer: Path) -> int | None:
    """The most tokens that a graph takes and its tokenizer makes; None where neither says.

    The graph says it by the shape of its inputs or by its table of positions; else it is run at the length
    that the tokenizer's folder names.

    Args:
        tokenizer: the folder with `config.json` and the tokenizer's settings; may have neither.
    """
    positions, named = Tables(graph, inputs).positions, greatest_length(tokenizer)
    known = [length for length in (inputs.length, positions or None, named) if length]
    if not known:
        return None
    limit = min(*known, LONGEST)
    if inputs.length or positions:
        return limit
    return longest_length(split_weights(graph), limit) or limit


class Tables:
    """How many rows the graph's tables of embeddings have; 0 where there is none.

    Attributes:
        words, words_name: of the smallest table that token ids index.
        types: of the one that token types index.
        positions: of the one that neither indexes and that is as wide as the words' one, without those that
            stand for padding.
    """

    def __init__(self, graph: ModelProto, inputs: GraphInputs) -> None:
        self.words, self.types, self.positions, self.words_name = 0, 0, 0, ""
        role_of = {name: role for role, (name, _) in inputs.roles.items()}
        tables = list(_tables(graph))
        width = {size[1] for _, size, index in tables if role_of.get(index) == "ids"}
        for name, (rows, columns), index in tables:
            role = role_of.get(index)
            if role == "ids" and (not self.words or rows < self.words):
                self.words, self.words_name = rows, name
            elif role == "types":
                self.types = rows
            elif role in (None, "positions") and columns in width and rows >= _FEWEST_POSITIONS:
                counted = "CumSum" in _before(index, graph)
                self.positions = rows - _PADDING_POSITIONS if counted else rows


def _before(name: str, graph: ModelProto) -> set[str]:
    """The operators that a tensor is computed by."""
    writers = {output: node for node in graph.graph.node for output in node.output}
    operators, names, seen = set(), [name], set()
    while names:
        node = writers.get(names.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            operators.add(node.op_type)
            names += node.input
    return operators


def _tables(graph: ModelProto) -> Iterator[tuple[str, tuple[int, int], str]]:
    """Two-dimensional weights that a Gather reads: name, size, and what its index was moved from."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    writers = {name: node for node in graph.graph.node for name in node.output}
    for node in graph.graph.node:
        if node.op_type == "Gather" and len(sizes.get(node.input[0], ())) == 2:
            rows, columns = sizes[node.input[0]]
            yield node.input[0], (rows, columns), _moved_from(node.input[1], writers)


def _moved_from(name: str, writers: Mapping[str, NodeProto]) -> str:
    """The tensor that moves and casts made this one from."""
    while name in writers and writers[name].op_type in (*MOVING_OPS, "Cast"):
        name = writers[name].input[0]
    return name
