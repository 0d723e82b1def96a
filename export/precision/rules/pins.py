"""What the user said: patterns that name nodes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from bertmp.core.errors import InputError
from bertmp.export.graph.graph_index import GraphFacts
from bertmp.export.graph.tracing import module_of
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rules.rule import Strength


@dataclass(frozen=True)
class Pinned:
    """The user said so: a pattern that matches the node's name, its operator or its module."""

    patterns: Sequence[str]
    strength: Strength = "must"

    def reason(self, node: NodeProto, facts: GraphFacts) -> Reason | None:
        for pattern in self.patterns:
            if names_node(pattern, node):
                return Reason("pinned", f"--keep-fp32 {pattern} names it")
        return None


def names_node(pattern: str, node: NodeProto) -> bool:
    """Whether a pattern names a node by its name, its operator or its module.

    A module's name stands for everything inside it; it may leave out its first parts
    (`encoder.layer.3.attention` for `bert.encoder.layer.3.attention`). A graph that does not note its
    modules has them in its nodes' names, between slashes.
    """
    noted = module_of(node)
    module = noted or ".".join(part for part in node.name.split("/")[:-1] if part)
    inside = f".{pattern}." in f".{module}." or fnmatch.fnmatchcase(module, pattern)
    return inside or node.op_type == pattern or fnmatch.fnmatchcase(node.name, pattern)


def check_patterns(patterns: Sequence[str], nodes: Iterable[NodeProto], option: str) -> None:
    """Errors: InputError for a pattern that names no node."""
    nodes = list(nodes)
    for pattern in patterns:
        if not any(names_node(pattern, node) for node in nodes):
            raise InputError(
                f"'{pattern}' names no node", option, "use a node's name, an operator or a module, * allowed"
            )
