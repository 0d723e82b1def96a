"""The casts of a graph, and those that it could do without."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from bertmp.export.graph.nodes import MOVING_OPS, input_names, name_of, output_names
from bertmp.export.lint.findings import Casts, Finding, findings_about
from bertmp.export.lint.graph_view import GraphView

_WIDTH = {"fp16": 16, "bf16": 16, "fp32": 32, "fp64": 64}
"""A cast to a wider type loses nothing."""


def count_casts(view: GraphView) -> Casts:
    """Counts the casts between floating-point types and finds those that could go."""
    casts = [node for node in view.nodes if view.is_cast(node)]
    kinds, in_a_row, repeated, constant = Counter[tuple[str, str]](), [], [], []
    seen: set[tuple[str, str]] = set()
    for node in casts:
        name, source, made = name_of(node), input_names(node)[0], view.kind(output_names(node)[0])
        before = view.producer(source)
        kinds[view.kind(source), made] += 1
        if before is not None and view.is_cast(before):
            in_a_row.append(name)
        if (source, made) in seen:
            repeated.append(name)
        seen.add((source, made))
        if source in view.stored:
            constant.append(name)
    spared = {*in_a_row, *repeated, *constant, *_around_moves(casts, view)}
    return Casts(
        total=len(casts),
        kinds={f"{source} to {made}": number for (source, made), number in kinds.items()},
        in_a_row=tuple(in_a_row),
        repeated=tuple(repeated),
        constant=tuple(constant),
        spared=tuple(name_of(node) for node in casts if name_of(node) in spared),
    )


def _around_moves(casts: list[ir.Node], view: GraphView) -> set[str]:
    """Casts into another type and back with only moves between, which can run in the first type."""
    outputs = {value.name for value in view.graph.graph.output}
    found: set[str] = set()
    for node in casts:
        first, back, ahead = view.kind(input_names(node)[0]), [], [output_names(node)[0]]
        while ahead:
            name = ahead.pop()
            users = view.readers(name)
            if name in outputs or not users:
                break
            returns = [
                user for user in users if view.is_cast(user) and view.kind(output_names(user)[0]) == first
            ]
            moves = [user for user in users if user.op_type in MOVING_OPS and input_names(user)[0] == name]
            if len(returns) + len(moves) < len(users):
                break
            back += returns
            ahead += [output for user in moves for output in output_names(user)]
        else:
            if any(input_names(user)[0] != output_names(node)[0] for user in back):
                found |= {name_of(node), *(name_of(user) for user in back)}
    return found


def cast_findings(casts: Casts, view: GraphView) -> list[Finding]:
    """What to do about the casts that could go."""
    lossy = sum(_rounds_for_nothing(name, view) for name in casts.in_a_row)
    rounding = f"; {lossy} of the pairs round to 16 bits and back" if lossy else ""
    size = sum(view.constants[input_names(view.named[name])[0]].nbytes for name in casts.constant)
    others = {*casts.in_a_row, *casts.repeated, *casts.constant}
    around = [name for name in casts.spared if name not in others]
    kinds = (
        (
            "casts-in-a-row", casts.in_a_row, f"read another cast's result{rounding}",
            "connect the reader to the first cast's input",
        ),
        (
            "repeated-cast", casts.repeated, "repeat a cast of the same tensor to the same type",
            "let all readers share one",
        ),
        (
            "cast-of-a-weight", casts.constant,
            f"convert weights or constants ({size / 1e6:.1f} MB of FP32) at every run",
            "store them in the type that they are read in",
        ),
        (
            "cast-around-moves", around, "stand around operators that only move values, such as Reshape",
            "run those in the type on either side",
        ),
    )  # fmt: skip
    return findings_about(
        (rule, names, f"{len(names)} casts {what}", advice) for rule, names, what, advice in kinds
    )


def _rounds_for_nothing(cast: str, view: GraphView) -> bool:
    """Whether the cast before this one rounds, and this one goes back up."""
    node = view.named[cast]
    before = view.producer(input_names(node)[0])
    assert before is not None
    first, between, last = (
        _WIDTH[view.kind(name)]
        for name in (input_names(before)[0], input_names(node)[0], output_names(node)[0])
    )
    return between < first and between < last
