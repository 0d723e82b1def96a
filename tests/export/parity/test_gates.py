"""Gates as pure decisions: at the boundary, with nothing measured, and overridden by a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.core.errors import InputError
from bertmp.export.parity.gates import (
    DEFAULTS,
    Evidence,
    Gate,
    Limits,
    changed_limits,
    decide,
    limits_of,
    of_precision,
    override,
    read_limits,
)
from bertmp.export.parity.stage_metrics import (
    Flip,
    StageMetrics,
)

PERFECT = StageMetrics(
    row_errors=np.zeros(1000),
    margins=np.ones(1000),
    max_error=0.0,
    mean_error=0.0,
    max_probability_error=0.0,
    flips=(),
    non_finite=0,
    scale=1.0,
    error_999=0.0,
    max_relative_error=0.0,
    mean_relative_error=0.0,
    relative_error_999=0.0,
    max_divergence=0.0,
    correct=np.arange(1000) < 900,
    reference_correct=np.arange(1000) < 900,
    examples=1000,
)
FLIP = Flip(row=0, unit=0, reference=0, answer=1, margin=0.5, error=0.01, explained=False)


def gates_of(stage: str, evidence: Evidence, limits: Limits | None = None) -> dict[str, Gate]:
    return {gate.name: gate for gate in decide(stage, evidence, limits or limits_of(stage))}


def failed(stage: str, metrics: StageMetrics) -> list[str]:
    return [name for name, gate in gates_of(stage, Evidence(metrics)).items() if not gate.passed]


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_limit_itself_still_holds(limit: float, value: float) -> None:
    limits = Limits(max_error=limit)
    gate = gates_of("x", Evidence(replace(PERFECT, max_error=value)), limits)["max_error"]
    assert gate.passed == (value <= limit)
    assert (gate.limit, gate.measured) == (limit, value)
    assert gates_of("x", Evidence(replace(PERFECT, max_error=limit)), limits)["max_error"].passed


@pytest.mark.parametrize(
    ("stage", "change", "broken"),
    [
        ("onnx-fp32", {"max_error": 5e-5}, []),
        ("onnx-fp32", {"max_error": 5.1e-5}, ["max_error"]),
        ("onnx-fp32", {"max_error": np.inf, "non_finite": 1}, ["non_finite", "max_error"]),
        ("onnx-fp16", {"correct": np.arange(1000) < 898}, []),
        ("onnx-fp16", {"correct": np.arange(1000) < 897}, ["accuracy_points"]),
        ("onnx-fp16", {"correct": np.arange(1000) < 903}, ["accuracy_points"]),
        ("onnx-fp16", {"correct": np.arange(300) < 269, "reference_correct": np.arange(300) < 270}, []),
        (
            "onnx-fp16",
            {"correct": np.arange(300) < 268, "reference_correct": np.arange(300) < 270},
            ["accuracy_points"],
        ),
        ("onnx-fp16", {"flips": (replace(FLIP, explained=True),)}, []),
        ("onnx-fp16", {"flips": (FLIP,)}, ["unexplained_flips"]),
        ("engine", {"max_error": 0.06}, ["max_error"]),
        ("triton", {"flips": (replace(FLIP, explained=True),)}, ["flips"]),
        ("triton", {"max_probability_error": 1e-5}, []),
        ("triton-http", {"max_probability_error": 2e-5}, ["max_probability_error"]),
    ],
)
def test_the_default_gates(stage: str, change: Mapping[str, Any], broken: list[str]) -> None:
    assert failed(stage, replace(PERFECT, **change)) == broken


def test_an_engine_is_held_to_the_error_of_its_graphs_precision() -> None:
    assert limits_of("engine", of_precision(DEFAULTS, "fp16")).max_error == 0.05
    assert limits_of("engine", of_precision(DEFAULTS, "bf16")).max_error == 0.25
    own = override({"engine": {"max_error": 0.1}}, "f")
    assert limits_of("engine", of_precision(own, "bf16")).max_error == 0.1


def test_unlabelled_texts_have_no_accuracy_gate() -> None:
    unlabelled = replace(PERFECT, correct=None, reference_correct=None)
    assert "accuracy_points" not in gates_of("onnx-fp16", Evidence(unlabelled))


def test_size_and_verification_are_gates_of_their_own() -> None:
    assert gates_of("onnx-fp16", Evidence(size_ratio=0.51))["size_ratio"].passed
    assert not gates_of("onnx-fp16", Evidence(size_ratio=0.511))["size_ratio"].passed
    assert gates_of("engine", Evidence(verified=True))["verified"].passed
    assert not gates_of("engine", Evidence(verified=False))["verified"].passed
    assert gates_of("engine", Evidence()) == {}


def test_a_stage_that_raised_fails() -> None:
    gate = gates_of("onnx-fp16", Evidence(failure="RuntimeError: bad node"))["runs"]
    assert not gate.passed
    assert "bad node" in gate.sentence


def test_a_gates_file_changes_what_it_names_and_nothing_else() -> None:
    limits = override(
        {"onnx-fp16": {"max_error": 1, "accuracy_points": False}, "triton-http": {"flips": 2}}, "f"
    )
    assert limits["onnx-fp16"] == replace(DEFAULTS["onnx-fp16"], max_error=1, accuracy_points=None)
    assert limits["triton-http"] == replace(DEFAULTS["triton"], flips=2)
    assert limits["onnx-fp32"] == DEFAULTS["onnx-fp32"]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"onnx-fp17": {}}, "unknown stage 'onnx-fp17'"),
        ({"onnx-fp16": {"max_eror": 1}}, "unknown gate 'max_eror'"),
        ({"onnx-fp16": {"max_error": "1"}}, "is not a number"),
        ({"onnx-fp16": {"max_error": float("nan")}}, "is not a number"),
        ({"onnx-fp16": {"max_error": float("inf")}}, "is not a number"),
        ({"onnx-fp16": {"max_error": -1}}, "is not a number"),
        ({"onnx-fp16": {"flips": 0.5}}, "is not an integer"),
        ({"onnx-fp16": {"flips": True}}, "is not an integer"),
        ({"engine": {"verified": 1}}, "is not true or false"),
        ({"onnx-fp16": 3}, "is not a table"),
    ],
)
def test_a_bad_gates_file_is_refused_in_one_line(tables: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        override(tables, "gates.toml")
    assert "gates.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_differs_from_the_built_in_gates_is_said() -> None:
    assert changed_limits(DEFAULTS, "fp16", list(DEFAULTS)) == ""
    assert changed_limits(read_limits(None, "bf16"), "bf16", list(DEFAULTS)) == ""
    tables = {
        "onnx-fp16": {"max_error": 0.5, "size_ratio": False, "flips": 2},
        "onnx-fp32": {"consistent": False},
        "torch-amp": {"consistent": True},
    }
    found = changed_limits(override(tables, "gates.toml"), "fp16", list(DEFAULTS))
    assert found == (
        "torch-amp consistent on, onnx-fp32 consistent off, onnx-fp16 max_error at most 0.5 and not 0.05, "
        "onnx-fp16 flips at most 2, onnx-fp16 size_ratio off"
    )
