"""The search: few FP32 nodes within a budget, what it never lowers, and what bounds too small a budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from bertmp import export_checkpoint
from bertmp.data.tokenizer import Tokenizer
from bertmp.export.graph.nodes import blocks_of
from bertmp.export.precision.calibration import Calibration, read_calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import PrecisionPlan, RangeRecord
from bertmp.export.precision.planner import Planner
from bertmp.export.precision.ranges import Ranges, measure
from bertmp.export.precision.search import EVALUATIONS, measured, search
from bertmp.model.checkpoint import save_checkpoint
from bertmp.model.config import BertConfig
from tests.conftest import RunBertmp
from tests.export.precision_graphs import WIDTH, Builder, extremes, planner_of
from tests.models import classifier

CONFIG = BertConfig(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=32,
    labels=("no", "perhaps", "yes"),
)


@pytest.fixture(scope="module")
def bundle(minilm: Path, trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier's FP32 graph with `texts.tsv` beside it."""
    folder = tmp_path_factory.mktemp("search")
    save_checkpoint(folder / "checkpoint", classifier(CONFIG), CONFIG, Tokenizer.load(minilm, 32))
    bundle = export_checkpoint(folder / "checkpoint", folder / "bundle", fp16=False).bundle
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()[:12]
    (bundle / "texts.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return bundle


@pytest.fixture(scope="module")
def graph(bundle: Path) -> ModelProto:
    return onnx.load(bundle / "model.onnx")


@pytest.fixture(scope="module")
def evaluator(bundle: Path, graph: ModelProto) -> Evaluator:
    return Evaluator(graph, read_calibration(bundle / "texts.tsv", bundle, graph))


@pytest.fixture(scope="module")
def planner(graph: ModelProto, evaluator: Evaluator) -> Planner:
    return planner_of(graph, ranges=measure(graph, evaluator.calibration))


def found(planner: Planner, evaluator: Evaluator, max_error: float) -> PrecisionPlan:
    return search(planner, evaluator, max_error, blocks_of(evaluator.graph))


def test_without_a_budget_the_cheaper_error_wins(planner: Planner, evaluator: Evaluator) -> None:
    plan = measured(planner, evaluator)
    assert plan.search is not None
    assert plan.search.max_error is None
    means = [evaluator.measure(other).mean_error for other in extremes(planner)]
    assert evaluator.measure(plan).mean_error == min(means)
    assert plan.search.error == evaluator.measure(plan).max_error


def test_a_budget_that_the_rules_meet_takes_the_fewest_fp32_nodes(
    planner: Planner, evaluator: Evaluator
) -> None:
    plan = found(planner, evaluator, 1.0)
    assert plan.search is not None
    assert plan.search.bound_by is None
    assert len(plan.kept_fp32()) == min(step.fp32_nodes for step in plan.search.steps)
    kept = {node.op for node in plan.kept_fp32()}
    assert kept >= {"LayerNormalization", "Softmax"}


def test_a_smaller_budget_raises_the_worst_nodes_and_no_more(planner: Planner, evaluator: Evaluator) -> None:
    rules = measured(planner, evaluator).search
    assert rules is not None
    budget = 0.7 * rules.error
    plan = found(planner, evaluator, budget)
    assert plan.search is not None
    assert plan.search.bound_by is None
    assert plan.search.label_flips == 0
    assert plan.search.error <= budget
    assert plan.search.error == evaluator.measure(plan).max_error
    assert len(plan.search.steps) > 2

    raised = [node for node in plan.kept_fp32() if any(reason.rule == "search" for reason in node.reasons)]
    assert 0 < len(raised) < 20
    reasons = {node.name: reason for node in raised for reason in node.reasons if reason.rule == "search"}
    assert all(reason.numbers["error"] > 0 for reason in reasons.values())
    for name in reasons:
        fewer = planner.plan({other: reason for other, reason in reasons.items() if other != name})
        assert evaluator.measure(fewer).max_error > budget


def test_a_budget_beyond_reach_names_what_bounds_it(planner: Planner, evaluator: Evaluator) -> None:
    """The tables of embeddings stay FP16: they are half the file."""
    plan = found(planner, evaluator, 1e-7)
    assert plan.search is not None
    assert plan.search.bound_by is not None
    assert plan.search.bound_by.startswith("bert/embeddings/")
    assert plan.search.bound_by.endswith("/Gather")
    most = max(plan.search.steps, key=lambda step: step.fp32_nodes)
    assert 1e-7 < plan.search.error <= 1.05 * most.error
    assert len(plan.kept_fp32()) < most.fp32_nodes
    assert len(plan.search.steps) <= EVALUATIONS


def test_progress_ends_where_it_said(planner: Planner, evaluator: Evaluator) -> None:
    calls: list[tuple[int, int]] = []
    search(planner, evaluator, 1.0, blocks_of(evaluator.graph), lambda done, all: calls.append((done, all)))
    assert calls[0] == (0, EVALUATIONS)
    assert calls[-1] == (EVALUATIONS, EVALUATIONS)


@pytest.fixture
def judged() -> tuple[ModelProto, Evaluator]:
    """A graph with a sum, which only a judgement keeps in FP32, between a normalisation and a softmax."""
    g = Builder()
    normed = g.norm(g.product("x"))
    axes = g.constant([-1], np.int64)
    total = g.node("ReduceSum", g.node("Tanh", g.product(normed)), axes, keepdims=1)
    graph = g.model(g.softmax(g.product(g.node("Mul", normed, total))))
    x = np.random.default_rng(1).normal(size=(6, WIDTH)).astype(np.float32)
    texts = Calibration([{"x": x}], [np.ones((6, 1), bool)], "x", "", 6)
    return graph, Evaluator(graph, texts)


def test_what_is_not_needed_is_moved_to_fp16_but_never_norms_and_softmax(
    judged: tuple[ModelProto, Evaluator],
) -> None:
    graph, evaluator = judged
    planner = planner_of(graph)
    assert "ReduceSum" in {node.op for node in planner.plan().kept_fp32()}
    generous, strict = (found(planner, evaluator, budget) for budget in (1.0, 1e-4))
    assert {node.op for node in generous.kept_fp32()} == {"LayerNormalization", "Softmax"}
    assert "ReduceSum" in {node.op for node in strict.kept_fp32()}
    assert generous.search is not None
    assert any(step.changed.startswith("dropped 1 node: ") for step in generous.search.steps)


def test_norms_and_softmax_are_moved_to_fp16_where_the_user_asks(
    judged: tuple[ModelProto, Evaluator],
) -> None:
    graph, evaluator = judged
    planner = planner_of(graph, allow=["LayerNormalization", "Softmax"])
    assert not found(planner, evaluator, 1.0).kept_fp32()


def test_what_comes_near_overflow_is_never_moved_to_fp16(judged: tuple[ModelProto, Evaluator]) -> None:
    graph, evaluator = judged
    ranges = Ranges({"t3": 30_000.0}, RangeRecord("calibration", "x", "", 6))
    plan = found(planner_of(graph, ranges=ranges), evaluator, 1.0)
    kept = {node.name for node in plan.kept_fp32() if any(reason.rule == "range" for reason in node.reasons)}
    assert kept == {"n3_Tanh", "n4_ReduceSum"}


def test_the_command_fails_where_the_budget_cannot_be_met(
    bundle: Path, run_bertmp: RunBertmp, tmp_path: Path
) -> None:
    options = ["--calibration", bundle / "texts.tsv", "--max-error", "1e-7"]
    done = run_bertmp("convert", bundle / "model.onnx", tmp_path / "out.onnx", *options, "--explain")
    assert done.returncode == 1, done.stderr
    assert "the budget of 1e-07 cannot be met, bert/embeddings/" in done.stdout
    assert "Error against FP32 nodes" in done.stdout
    plan = json.loads((tmp_path / "out.precision-plan.json").read_text())
    assert plan["search"]["bound_by"].endswith("/Gather")
