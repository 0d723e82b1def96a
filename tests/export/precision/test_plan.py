"""The plan as data: it survives the disk, is edited by hand, and knows what applying it depends on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bertmp.core.errors import InputError
from bertmp.export.precision.plan import (
    NodePlan,
    PrecisionPlan,
    RangeRecord,
    Reason,
    Rewrite,
    SearchRecord,
    SearchStep,
)

PLAN = PrecisionPlan(
    "0" * 64,
    (
        NodePlan("a", "MatMul", "layer.0", "fp16"),
        NodePlan(
            "b", "Softmax", "layer.0", "fp32", (Reason("softmax", "sums", {"largest": math.inf}),), 0.25
        ),
        NodePlan("c", "Shape", "", "integer"),
    ),
    headroom=8.0,
    rewrites=(Rewrite("mask", -math.inf, -16384.0, "it vanishes"),),
    ranges=RangeRecord("calibration", "texts.txt", "1" * 64, 64, {"layer.0": 12.5}),
    search=SearchRecord(0.1, 0.05, 0, 64, (SearchStep(1, math.inf, 3, "promoted b"),), None),
)


def test_a_plan_survives_the_disk_as_strict_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert PrecisionPlan.load(tmp_path / "plan.json") == PLAN

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "plan.json").read_text(), parse_constant=refuse)


def test_edits_give_another_plan() -> None:
    mine = Reason("mine", "because")
    raised = PLAN.with_precision(["a"], "fp32", mine)
    assert [node.name for node in raised.kept_fp32()] == ["a", "b"]
    assert raised.nodes[0].reasons == (mine,)
    moved = PLAN.with_precision(["b"], "fp16")
    assert moved.counts() == {"fp16": 2, "fp32": 0, "integer": 1}
    assert moved.nodes[1].reasons == ()
    assert PLAN.counts() == {"fp16": 1, "fp32": 1, "integer": 1}
    with pytest.raises(InputError, match="the plan has no node 'nobody'"):
        PLAN.with_precision(["nobody"], "fp32")


def test_the_digest_is_of_what_applying_depends_on() -> None:
    same = replace(PLAN, search=None, ranges=None, headroom=2.0)
    assert same.digest() == PLAN.digest()
    for other in (
        PLAN.with_precision(["a"], "fp32"),
        replace(PLAN, rewrites=()),
        replace(PLAN, target="bf16"),
        replace(PLAN, graph_sha256="2" * 64),
    ):
        assert other.digest() != PLAN.digest()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 1}, "not a precision plan of format 2"),
        ({"nodes": [{"name": "a"}]}, "a damaged precision plan"),
        ({"target": "fp8"}, "target: Input should be 'fp16' or 'bf16'"),
        ({"target": "bf16"}, "node 'a' has the precision 'fp16'"),
        ({"graph_sha256": None, "nodes": 3}, "a damaged precision plan"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(change: dict[str, object], says: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN.to_json(), **change}))
    with pytest.raises(InputError, match=says):
        PrecisionPlan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(InputError, match="not a precision plan"):
        PrecisionPlan.load(tmp_path / "plan.json")


def test_a_plan_of_version_0_1_is_read(tmp_path: Path) -> None:
    text = json.dumps(PLAN.to_json()).replace('"justification"', '"proof"')
    assert '"proof": "it vanishes"' in text
    (tmp_path / "plan.json").write_text(text)
    assert PrecisionPlan.load(tmp_path / "plan.json") == PLAN
