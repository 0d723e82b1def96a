"""A served model as a stage: held to the graph or engine that it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bertmp import parity
from bertmp.export.parity.stage import StageOutput
from tests.export.parity_bundles import LABELS, Served


def test_a_served_model_is_held_to_the_graph_that_it_serves(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled, extra_stages=[Served(bundle / "model.onnx")])
    assert result.passed
    stage = result.stage("triton")
    assert stage.serves == "onnx-fp32"
    assert stage.served is not None
    assert stage.served.max_probability_error <= 1e-7


def test_a_served_model_that_repeats_the_fp16_graph_is_held_to_its_gates(
    bundle: Path, labelled: Path
) -> None:
    result = parity(bundle, labelled, extra_stages=[Served(bundle / "model.fp16.onnx")])
    assert result.passed, [gate.sentence for gate in result.failed_gates]
    assert result.stage("triton").serves == "onnx-fp16"
    limits = {gate.name: gate.limit for gate in result.gates if gate.stage == "triton"}
    assert limits["max_error"] == 0.05
    assert limits["max_probability_error"] == 0.025


@pytest.mark.parametrize(("error", "passes"), [(0.02, True), (0.5, False)])
def test_a_served_engine_is_held_to_the_engines_gates(
    bundle: Path, labelled: Path, error: float, passes: bool
) -> None:
    def on_engine(answer: StageOutput) -> StageOutput:
        logits = answer.logits + np.float32(error)
        return replace(answer, logits=logits, details={"serves": "engine", "platform": "tensorrt_plan"})

    result = parity(bundle, labelled, extra_stages=[Served(bundle / "model.onnx", on_engine)])
    assert result.stage("triton").serves == "engine"
    assert result.passed == passes
    assert [gate.name for gate in result.failed_gates] == ([] if passes else ["max_error", "adversarial"])


def _one_other_label(answer: StageOutput) -> StageOutput:
    answers = np.array(answer.answers)
    answers[5] = (answers[5] + 1) % len(LABELS)
    return replace(answer, answers=answers)


def _rounded(answer: StageOutput) -> StageOutput:
    assert answer.probabilities is not None
    return replace(answer, probabilities=np.round(answer.probabilities, 3))


def _other_order(answer: StageOutput) -> StageOutput:
    return replace(answer, details={"labels": list(reversed(LABELS))})


@pytest.mark.parametrize(
    ("change", "broken"),
    [(_one_other_label, "flips"), (_rounded, "max_probability_error"), (_other_order, "runs")],
)
def test_a_served_model_that_answers_otherwise_fails(
    bundle: Path, labelled: Path, change: Callable[[StageOutput], StageOutput], broken: str
) -> None:
    result = parity(bundle, labelled, extra_stages=[Served(bundle / "model.onnx", change)])
    failed = [(gate.stage, gate.name) for gate in result.failed_gates]
    assert failed[0] == ("triton", broken)
    assert failed[1:] in ([], [("triton", "adversarial")])  # the same fault shows there as well


def test_a_stage_of_one_protocol_is_the_served_model_that_is_required(bundle: Path, labelled: Path) -> None:
    over_grpc = Served(bundle / "model.onnx")
    over_grpc.name = "triton-grpc"
    result = parity(bundle, labelled, extra_stages=[over_grpc], require=["triton"])
    assert result.verdict == "passed", result.headline()
