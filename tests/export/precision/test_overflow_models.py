"""Models made to overflow in FP16 without changing what they compute: found from text alone, and repaired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.calibration import Calibration, read_calibration
from bertmp.export.precision.fp16_emulation import Evaluator
from bertmp.export.precision.plan import PrecisionPlan
from bertmp.export.precision.planner import Planner
from bertmp.export.precision.ranges import measure
from tests.conftest import RunBertmp
from tests.export.conftest import Questions
from tests.export.overflowing import LAYER, large_residual, large_values
from tests.export.precision_graphs import planner_of

SUM = f"bert/encoder/layer.{LAYER}/output/Add"
VALUES = f"bert/encoder/layer.{LAYER}/attention/self/value"


@pytest.fixture(scope="module")
def texts(questions: Questions) -> Calibration:
    return read_calibration(questions.texts, questions.bundle, questions.graph())


def plain(planner: Planner) -> PrecisionPlan:
    """Everything in FP16, as a conversion that knows no rule makes it."""
    plan = planner.plan()
    return plan.with_precision([n.name for n in plan.nodes if n.precision != "integer"], "fp16")


def answers(graph: ModelProto, texts: Calibration) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(["logits"], dict(feed))[0]) for feed in texts.feeds]


def with_residual(largest: float) -> Callable[[ModelProto, Calibration], None]:
    def change(graph: ModelProto, texts: Calibration) -> None:
        large_residual(graph, largest, measure(graph, texts).largest[f"{SUM}_output"])

    return change


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        (lambda graph, texts: large_values(graph), {f"{VALUES}/MatMul", f"{VALUES}/Add"}),
        (with_residual(30_000), {SUM}),
        (with_residual(100_000), {SUM}),
    ],
    ids=["values x 20000", "residual of 30000", "residual of 100000"],
)
def test_an_overflow_is_found_from_text_and_kept_in_fp32(
    change: Callable[[ModelProto, Calibration], None],
    bound: set[str],
    questions: Questions,
    texts: Calibration,
) -> None:
    original, graph = questions.graph(), questions.graph()
    change(graph, texts)
    same = zip(answers(original, texts), answers(graph, texts), strict=True)
    assert max(np.abs(a - b).max() for a, b in same) < 2e-5

    evaluator, ranges = Evaluator(graph, texts), measure(graph, texts)
    rules = planner_of(graph)
    overflows = max(ranges.largest[f"{name}_output"] for name in bound) > 65504
    assert evaluator.measure(plain(rules)).finite is not overflows

    planner = planner_of(graph, ranges=ranges)
    plan = planner.plan()
    found = evaluator.measure(plan)
    assert found.finite
    assert found.flips == 0
    assert found.max_error < 0.02

    kept = {n.name: n for n in plan.kept_fp32() if any(r.rule == "range" for r in n.reasons)}
    assert bound <= kept.keys()
    assert len(kept) <= 9
    for node in kept.values():
        (reason,) = (reason for reason in node.reasons if reason.rule == "range")
        assert reason.numbers["headroom"] < 4
    layer = [headroom for block, headroom in plan.ranges.blocks.items() if block.endswith(f"layer.{LAYER}")]  # type: ignore[union-attr]
    assert layer == [min(plan.ranges.blocks.values())]  # type: ignore[union-attr]


def test_no_node_is_kept_that_would_not_overflow(questions: Questions, texts: Calibration) -> None:
    """With a headroom of 1: without any one of the nodes that write too large a number there is no answer."""
    graph = questions.graph()
    large_values(graph)
    ranges, evaluator = measure(graph, texts), Evaluator(graph, texts)
    plan = planner_of(graph, ranges=ranges, headroom=1).plan()
    assert evaluator.measure(plan).finite
    kept = [n for n in plan.kept_fp32() if any(r.rule == "range" for r in n.reasons)]
    assert len(kept) == 5
    for node in kept:
        assert not evaluator.measure(plan.with_precision([node.name], "fp16")).finite


@pytest.mark.parametrize("overflowing", [False, True])
def test_onnx_runtime_finds_the_error_that_the_plan_says(
    overflowing: bool, questions: Questions, texts: Calibration
) -> None:
    """Within a factor of 2, and never more: its x86 provider rounds only where a cast stands."""
    graph = questions.graph()
    if overflowing:
        large_values(graph)
    plan = planner_of(graph, ranges=measure(graph, texts)).plan()
    said = Evaluator(graph, texts).measure(plan)
    pairs = zip(answers(graph, texts), answers(apply_plan(graph, plan), texts), strict=True)
    errors = np.concatenate([np.abs(a - b).ravel() for a, b in pairs])
    assert said.max_error / 2 <= errors.max() <= said.max_error
    assert said.mean_error / 2 <= errors.mean() <= said.mean_error


def test_the_commands_find_it(questions: Questions, run_bertmp: RunBertmp, tmp_path: Path) -> None:
    graph = questions.graph()
    large_values(graph)
    onnx.save(graph, tmp_path / "in.onnx")
    done = run_bertmp(
        "convert", tmp_path / "in.onnx", tmp_path / "out.onnx", "--calibration", questions.texts,
        "--tokenizer", questions.bundle, "--max-error", 0.05, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ranges"]["source"] == "calibration"
    assert result["ranges"]["tightest_block"] == f"bert.encoder.layer.{LAYER}"
    assert result["ranges"]["headroom"] < 1
    assert result["measured"]["error"] <= 0.05
    assert result["measured"]["label_flips"] == 0
    plan = PrecisionPlan.load(Path(result["plan"]))
    node = next(node for node in plan.nodes if node.name == f"{VALUES}/Add")
    assert node.error == float("inf")
    assert all(n.error is not None for n in plan.kept_fp32() if n.reasons[0].rule != "constant")

    shown = run_bertmp(
        "convert", tmp_path / "in.onnx", tmp_path / "again.onnx", "--plan", result["plan"], "--explain"
    )
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert "times that, and at least 4 times is required" in " ".join(shown.stdout.replace("│", " ").split())
