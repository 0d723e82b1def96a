"""The self-consistency check, on real graphs in ONNX Runtime: sound ones and ones that mix up their rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from bertmp.data.tokenizer import Encoded
from bertmp.export.consistency.check import Consistency, Outputs, check_consistency
from bertmp.export.consistency.probe import (
    Probe,
    graph_shapes,
    probe_of,
    profile_shapes,
    random_probe,
)
from bertmp.export.consistency.tolerance import FP32, tolerance_of
from bertmp.export.engine.engine_options import Shape, default_profiles, parse_profile
from bertmp.export.precision.plan import SearchRecord
from tests.export import inconsistent_graphs as faults
from tests.export.engine_graphs import LABELS, POSITIONS, VOCABULARY, small_bert

Feed = dict[str, np.ndarray]
PROBE = random_probe(VOCABULARY, POSITIONS)
LOW = tolerance_of(replace(small_bert()[1], search=SearchRecord(None, 1e-4, 0, 8)))


def session_of(fault: faults.Fault | None = None) -> Callable[[Feed], Outputs]:
    """Runs the small BERT, perhaps with a fault, in ONNX Runtime."""
    model, _ = small_bert()
    if fault is not None:
        fault(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda feed: {"logits": session.run(["logits"], feed)[0]}


def failed(found: Consistency) -> set[str]:
    return {result.check for result in found.contradictions}


@pytest.mark.parametrize(
    "shapes", [graph_shapes(PROBE), profile_shapes(default_profiles(POSITIONS, 32), PROBE)]
)
def test_a_sound_graph_is_consistent(shapes: list[tuple[int, int]]) -> None:
    found = check_consistency(session_of(), PROBE, shapes, LOW)
    assert found.passed, found.sentence()
    assert {result.check for result in found.results} == {
        "identical_rows",
        "permuted_rows",
        "single_row",
        "padding",
    }
    assert found.difference <= LOW.bound(0)
    assert json.loads(json.dumps(found.to_json()))["results"][0]["check"] == "identical_rows"


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        (faults.roll_rows, {"identical_rows", "permuted_rows", "single_row"}),
        (faults.roll_large_batches, {"identical_rows", "permuted_rows", "single_row"}),
        (faults.centre_batch, {"single_row"}),
        (faults.add_place, {"identical_rows", "permuted_rows", "single_row"}),
        (faults.add_length, {"padding"}),
    ],
)
@pytest.mark.parametrize("engine", [False, True])
def test_a_graph_that_mixes_up_rows_is_caught(fault: faults.Fault, checks: set[str], engine: bool) -> None:
    shapes = profile_shapes(default_profiles(POSITIONS, 32), PROBE) if engine else graph_shapes(PROBE)
    found = check_consistency(session_of(fault), PROBE, shapes, LOW)
    assert failed(found) == checks
    assert found.sentence().startswith("it contradicts itself: ")
    assert all(check in found.sentence() for check in checks)


def test_a_fault_of_one_profile_names_its_shapes() -> None:
    profiles = [parse_profile("1x1:4x16:16x16"), parse_profile("1x17:8x32:32x64")]
    shapes = profile_shapes(profiles, PROBE)
    found = check_consistency(session_of(faults.roll_large_batches), PROBE, shapes, LOW)
    assert {result.shape for result in found.contradictions} == {"32x17", "32x64"}


@pytest.mark.parametrize("text", ["4x8", "2x64", "1x1:2x8:3x16", "1x64"])
def test_every_shape_lies_in_the_profile(text: str) -> None:
    profile, run, asked = parse_profile(text), session_of(), set()

    def engine(feed: Feed) -> Outputs:
        asked.add(Shape(*feed["input_ids"].shape))
        return run(feed)

    found = check_consistency(engine, PROBE, profile_shapes([profile], PROBE), LOW)
    assert found.passed
    assert set(profile) <= asked
    assert all(profile.holds(shape) for shape in asked)
    assert bool(found.results) == (profile.max.batch > 1)


def test_per_token_outputs_are_compared_at_real_positions_alone() -> None:
    def run(feed: Feed, everywhere: bool) -> Outputs:
        ids, mask = feed["input_ids"].astype(np.float32), feed["attention_mask"]
        masked = np.stack([ids, -ids], axis=-1)
        masked += np.where(mask[..., None] == 0, np.float32(ids.shape[1]), 0)
        return {"logits": masked + np.float32(ids.shape[1]) if everywhere else masked}

    shapes = graph_shapes(PROBE)
    assert check_consistency(lambda feed: run(feed, False), PROBE, shapes, FP32).passed
    assert failed(check_consistency(lambda feed: run(feed, True), PROBE, shapes, FP32)) == {"padding"}


def answering(alone: list[float], in_batch: list[float]) -> Callable[[Feed], Outputs]:
    """A model that answers a row by itself and a row of a batch with these logits."""

    def run(feed: Feed) -> Outputs:
        rows = len(feed["input_ids"])
        return {"logits": np.tile(np.array(in_batch if rows > 1 else alone, np.float64), (rows, 1))}

    return run


def test_a_changed_label_is_a_contradiction_though_the_difference_is_within_the_bound() -> None:
    step = FP32.bound(1)
    run = answering([1 + 0.8 * step, 1 - 0.8 * step], [1 - 0.1 * step, 1 + 0.1 * step])
    found = check_consistency(run, PROBE, graph_shapes(PROBE), FP32)
    assert failed(found) == {"single_row"}
    assert found.contradictions[0].difference < found.contradictions[0].bound
    assert "labels change" in found.sentence()


@pytest.mark.parametrize(
    ("alone", "in_batch"),
    [([1.0, 1.0 + 1e-8], [1.0 + 1e-8, 1.0]), ([1.0, -np.inf], [1.0, -np.inf])],
    ids=["labels as good as equal", "a class that is switched off"],
)
def test_what_is_no_contradiction(alone: list[float], in_batch: list[float]) -> None:
    assert check_consistency(answering(alone, in_batch), PROBE, graph_shapes(PROBE), FP32).passed


@pytest.mark.parametrize(
    "where",
    [
        lambda rows, length, padded: rows == 2,
        lambda rows, length, padded: rows == 3,
        lambda rows, length, padded: rows == 8,
        lambda rows, length, padded: rows > 1 and length % 8 != 0,
        lambda rows, length, padded: rows > 1 and length > 64,
        lambda rows, length, padded: rows > 1 and not padded,
    ],
    ids=["two rows", "three rows", "eight rows", "odd lengths", "long rows", "no padding"],
)
def test_faults_of_some_shapes_are_found(where: Callable[[int, int, bool], bool]) -> None:
    probe = random_probe(1000, 256)

    def run(feed: Feed) -> Outputs:
        ids, mask = feed["input_ids"], feed["attention_mask"]
        logits = np.stack([(ids * mask).sum(1), mask.sum(1)], axis=1).astype(np.float32)
        fault = where(*ids.shape, not mask.all())
        return {"logits": np.roll(logits, 1, axis=0) if fault else logits}

    assert not check_consistency(run, probe, graph_shapes(probe), FP32).passed


def test_small_answers_have_a_small_bound() -> None:
    """A regression whose values are of some thousandths: rows that are swapped are found."""
    run = answering([0.0007], [0.0001])
    assert not check_consistency(run, PROBE, graph_shapes(PROBE), FP32).passed


def test_an_answer_that_is_not_finite_is_a_contradiction_and_plain_json() -> None:
    def run(feed: Feed) -> Outputs:
        rows = len(feed["input_ids"])
        return {"logits": np.full((rows, 2), np.nan if rows > 1 else 0, np.float32)}

    found = check_consistency(run, PROBE, graph_shapes(PROBE), FP32)
    assert "single_row" in failed(found)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_runtime_that_reuses_its_buffer_is_not_compared_with_itself() -> None:
    session, buffer = session_of(faults.centre_batch), np.zeros((64, LABELS), np.float32)

    def run(feed: Feed) -> Outputs:
        answer = session(feed)["logits"]
        buffer[: len(answer)] = answer
        return {"logits": buffer[: len(answer)]}

    found = check_consistency(run, PROBE, graph_shapes(PROBE), LOW)
    assert failed(found) == {"single_row"}


def test_the_bound_is_the_plans_measured_error() -> None:
    plan = small_bert()[1]
    measured = tolerance_of(replace(plan, search=SearchRecord(None, 0.02, 0, 8)))
    assert measured.bound(1) == 0.02
    assert "measured error" in measured.reason
    exact = tolerance_of(replace(plan, search=SearchRecord(None, 0.0, 0, 8)))
    assert exact.bound(4) == 2 * 4 * 2**-10  # numbers two FP16 steps apart
    assert "not measured" in tolerance_of(plan).reason
    assert FP32.bound(1) < 5e-5 < exact.bound(1) < tolerance_of(plan).bound(1)


def encoded(*ids: int) -> Encoded:
    return Encoded([1, *ids, 2], [0] * (len(ids) + 2), truncated=False)


def test_a_probe_takes_short_and_long_rows_by_name() -> None:
    rows = [encoded(*range(3, 3 + size)) for size in (9, 1, 4, 1, 20, 6)]
    probe = probe_of(rows, [f"line {number}" for number in range(1, 7)], pad_id=0, max_length=64)
    assert [len(row) for row in probe.rows] == [3, 8, 22]
    assert probe.names[0] in ("line 2", "line 4")
    assert probe.names[1:] == ("line 6", "line 5")
    assert [len(row) for row in probe.at(8)] == [3, 8, 8]


def test_one_example_gets_another_row_beside_it() -> None:
    probe = probe_of([encoded(5, 6)], ["line 1"], pad_id=0, max_length=64)
    assert [row.input_ids for row in probe.rows] == [[1, 2], [1, 5, 6, 2]]
    found = check_consistency(session_of(faults.roll_rows), probe, graph_shapes(probe), LOW)
    assert "permuted_rows" in failed(found)


def test_graph_shapes_stay_within_the_model() -> None:
    probe: Probe = random_probe(VOCABULARY, 12)
    shapes = graph_shapes(probe, max_batch=4)
    assert max(length for _, length in shapes) == 12
    assert max(batch for batch, _ in shapes) == 4
