"""What the user decides: patterns that name nodes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bertmp.core.errors import InputError
from bertmp.export.graph.nodes import module_of, name_of
from bertmp.export.precision.plan import Reason
from bertmp.export.precision.rules.rule import RuleContext, Strength


@dataclass(frozen=True)
class Pinned:
    """The user keeps the node in FP32: a pattern matches its name, its operator or its module."""

    patterns: Sequence[str]
    strength: Strength = "hard"

    def reason(self, node: ir.Node, context: RuleContext) -> Reason | None:
        for pattern in self.patterns:
            if names_node(pattern, node):
                return Reason("pinned", f"--keep-fp32 {pattern} matches it")
        return None


def names_node(pattern: str, node: ir.Node) -> bool:
    """Whether a pattern matches a node's name, its operator or its module.

    A module's name stands for everything inside it; its first parts may be left out
    (`encoder.layer.3.attention` for `bert.encoder.layer.3.attention`). A graph that does not record its
    modules has them in its nodes' names, between slashes.
    """
    name = name_of(node)
    module = module_of(node) or ".".join(part for part in name.split("/")[:-1] if part)
    inside = f".{pattern}." in f".{module}." or fnmatch.fnmatchcase(module, pattern)
    return inside or node.op_type == pattern or fnmatch.fnmatchcase(name, pattern)


def check_patterns(patterns: Sequence[str], nodes: Iterable[ir.Node], option: str) -> None:
    """Checks that every pattern matches a node.

    Raises:
        InputError: one matches none.
    """
    nodes = list(nodes)
    for pattern in patterns:
        if not any(names_node(pattern, node) for node in nodes):
            raise InputError(
                f"'{pattern}' matches no node",
                option,
                "give a node's name, an operator or a module; * is allowed",
            )
