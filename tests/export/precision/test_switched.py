"""Nodes switched to the low precision in one session, against a session for each plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from bertmp import convert
from bertmp.export.graph import ort_sessions
from bertmp.export.graph.nodes import blocks_of
from bertmp.export.precision.calibration import read_calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import PrecisionPlan
from bertmp.export.precision.ranges import measure
from bertmp.export.precision.reasons import TOKENS, with_errors
from bertmp.export.precision.switched import GroupErrors, all_fp32
from tests.export.conftest import Questions
from tests.export.overflowing import large_values
from tests.export.precision.test_fp16_emulation import CHAINS, given_values
from tests.export.precision_graphs import WIDTH, Builder, chain, make_plan, planner_of


@settings(max_examples=25, deadline=None)
@given(operators=CHAINS, seed=st.integers(0, 2**16), chosen=st.sets(st.integers(0, 7)), bf16=st.booleans())
def test_any_nodes_in_the_low_precision_have_the_error_of_their_plan(
    operators: list[str], seed: int, chosen: set[int], bf16: bool
) -> None:
    graph = chain(operators, seed)
    x = np.random.default_rng(seed).normal(size=(5, WIDTH))
    plan = make_plan(graph, target="bf16" if bf16 else "fp16")
    evaluator = Evaluator(graph, given_values(x))
    nodes = [node.name for node in plan.nodes]
    low = chosen & set(range(len(nodes)))
    found = GroupErrors(evaluator, plan, [[name] for name in nodes], 64).measure(low)
    alone = all_fp32(plan).with_precision([nodes[number] for number in low], plan.target)
    assert found == pytest.approx(evaluator.measure(alone).max_error, abs=2e-6)


def test_a_node_that_overflows_in_the_low_precision_is_seen() -> None:
    g = Builder()
    graph = g.model(g.node("Mul", g.node("Mul", "x", g.constant(1000.0)), g.constant(0.001)))
    plan, evaluator = make_plan(graph), Evaluator(graph, given_values(np.full((1, WIDTH), 70.0)))
    errors = GroupErrors(evaluator, plan, [["n0_Mul"], ["n1_Mul"]], 64)
    assert errors.measure(()) == 0
    assert [errors.measure({number}) for number in (0, 1)] == [np.inf, np.inf]


@pytest.mark.parametrize("change", [large_values, lambda graph: None], ids=["values x 20000", "as it is"])
def test_the_reasons_of_a_real_graph_have_the_errors_of_their_plans(
    change: Callable[[ModelProto], None], questions: Questions
) -> None:
    graph = questions.graph()
    change(graph)
    texts = read_calibration(questions.texts, questions.bundle, graph)
    ranges, evaluator, blocks = measure(graph, texts), Evaluator(graph, texts), blocks_of(graph)
    plan = with_errors(planner_of(graph, ranges=ranges).plan(), evaluator, ranges, blocks)
    groups: dict[tuple[str, str], list[str]] = {}
    for node in plan.kept_fp32():
        groups.setdefault((node.reasons[0].rule, blocks[node.name]), []).append(node.name)
    errors = {node.name: node.error for node in plan.nodes}
    for (rule, _), names in [*groups.items()][::4] + [
        item for item in groups.items() if item[0][0] == "range"
    ]:
        low = all_fp32(plan).with_precision(names, "fp16")
        feeds = None if rule == "range" else texts.shortest(TOKENS)
        expected = evaluator.measure(low, feeds).max_error
        for name in names:
            if rule == "range" and np.isfinite(expected):
                assert errors[name] <= expected + 1e-5
            else:
                assert errors[name] == pytest.approx(expected, rel=0.02, abs=1e-5)
    assert (np.inf in errors.values()) == (change is large_values)


def test_a_calibrated_conversion_opens_few_sessions(
    questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many reasons there are: ranges, two plans, the better one and all reasons."""
    opened, original = [], ort_sessions.open_session

    def counted(graph: Any, **options: Any) -> Any:
        opened.append(graph)
        return original(graph, **options)

    monkeypatch.setattr(ort_sessions, "open_session", counted)
    made = convert(
        questions.bundle / "model.onnx", tmp_path / "out.onnx", calibration=questions.texts,
        tokenizer=questions.bundle,
    )  # fmt: skip
    assert 0 < len(opened) <= 5
    plan = PrecisionPlan.load(made.plan)
    assert all(n.error is not None for n in plan.kept_fp32() if n.reasons[0].rule != "constant")
    assert plan.search is not None
    texts = read_calibration(questions.texts, questions.bundle, onnx.load(questions.bundle / "model.onnx"))
    said = Evaluator(questions.graph(), texts).measure(plan)
    assert plan.search.error == pytest.approx(said.max_error, abs=1e-5)
