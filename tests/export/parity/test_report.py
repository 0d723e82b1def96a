"""The report's page: self-contained, escaped, and drawn for every kind of result."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmp.export.parity.block_errors import BlockErrors, LengthBin
from bertmp.export.parity.bundle_summary import BundleSummary, FileSummary, RuleSummary
from bertmp.export.parity.confusion import Confusion
from bertmp.export.parity.gates import (
    Evidence,
    decide,
    limits_of,
)
from bertmp.export.parity.junit import junit_xml
from bertmp.export.parity.report_page import render
from bertmp.export.parity.result import (
    DataSummary,
    FlipRow,
    ParityReport,
    StageReport,
)
from bertmp.export.parity.stage import StageOutput
from bertmp.export.parity.stage_metrics import (
    measure,
)
from bertmp.export.parity.verdict import Unchecked
from bertmp.metrics.comparison import MetricComparison
from bertmp.metrics.intervals import Interval
from bertmp.metrics.non_inferiority import non_inferiority
from bertmp.report.page import scientific
from bertmp.report.svg import LogScale
from tests.export.parity.report_checks import complaints, raw_values

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m"


BLOCK_ERRORS = BlockErrors(
    reason="",
    precision="fp16",
    blocks=("bert.embeddings", "bert.encoder.layer.0", f"bert.{HOSTILE}"),
    bins=(LengthBin(1, 8, 3), LengthBin(513, None, 1)),
    errors=((0.0, 3e-4), (0.02, 0.5), (float("inf"), 1e-7)),
    headroom=(9000.0, 1.5, float("inf")),
    seconds=0.1,
)


def report_of(error: float = 1e-3) -> ParityReport:
    """A stage that errs by `error` and flips one text of four, one verified, one failed; hostile words."""
    logits = np.array([[1, 0], [0, 2], [0.5, 0.5004], [3, 0]], np.float32)
    answer = logits + np.float32(error) * np.array([1, -1], np.float32)
    reference = StageOutput(logits)
    perfect, metrics = (measure(reference, other, [0, 1, 1, 0]) for other in (reference, StageOutput(answer)))
    stages = (
        StageReport("torch-fp32", "reference", seconds=1, measures=perfect),
        StageReport("onnx-fp16", "run", seconds=1, measures=metrics, size_ratio=0.5, details={"on": HOSTILE}),
        StageReport("engine", "not run", "no GPU", verification={"verified": True, "counts": {"nodes": 3}}),
        StageReport("triton", "failed", HOSTILE),
    )
    evidence = {
        "onnx-fp16": Evidence(metrics, size_ratio=0.5),
        "engine": Evidence(verified=True),
        "triton": Evidence(failure=HOSTILE),
    }
    rows = [FlipRow("onnx-fp16", 3, HOSTILE, "a", HOSTILE, "b", one) for one in metrics.flips]
    return ParityReport(
        bundle=Path("trec"),
        folder=Path("trec/parity"),
        reference="torch-fp32",
        note="",
        data=DataSummary(Path(f"{HOSTILE[:30]}.tsv"), "0" * 64, 4, True, 1),
        stages=stages,
        gates=tuple(
            gate
            for name, what in evidence.items()
            for gate in decide(name, what, replace(limits_of(name), accuracy_points=None))
        ),
        unchecked=(),
        flips=tuple(rows),
        contents=BundleSummary(
            files=(FileSummary("model.onnx", "export", 1000, "1" * 64),),
            precisions={"fp16": 9, "fp32": 1},
            rules=(RuleSummary("softmax", (HOSTILE,), {"Softmax": 1}, (HOSTILE,)),),
            engine={"builder": "tensorrt-rtx"},
            network={"SOFTMAX": {"FLOAT": 1}},
        ),
        block_errors=BLOCK_ERRORS,
        confusion=Confusion(
            "torch-fp32", "onnx-fp16", ("a", HOSTILE), np.eye(2, dtype=int), np.ones((2, 2), int)
        ),
        environment={"machine": HOSTILE},
        seconds=2,
        created="2026-01-01T00:00:00+00:00",
    )


UNDEFINED = MetricComparison(
    name="pearson",
    before=float("nan"),
    after=0.5,
    non_inferiority=non_inferiority(
        float("nan"), Interval(float("nan"), float("nan"), float("nan"), 0.95, 9, 3, "bootstrap")
    ),
    mcnemar_p=None,
)
"""Of a constant there is no correlation."""


class Outside(HTMLParser):
    """Collects whatever would load or run something, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed", "img", "base", "form"):
            self.found.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action") or name.startswith("on"):
                self.found.append(f"{tag} {name}={value}")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("error", [0.0, 1e-3, 10.0, float("nan")])
def test_the_page_needs_nothing_from_outside_and_holds_no_markup_of_the_data(error: float) -> None:
    page = render(report_of(error))
    seen = Outside()
    seen.feed(page)
    assert seen.found == []
    assert seen.open == []
    assert not re.search(r"https?://|url\(|@import", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 2  # the distribution and the scatter of one stage


VARIANTS = {
    "failed": {},
    "a number that is not finite": {"error": float("nan")},
    "incomplete": {"unchecked": (Unchecked("engine", "no GPU", False),)},
    "allowed": {"unchecked": (Unchecked("engine", "no GPU", True),)},
    "without a reference": {
        "reference": "",
        "stages": (StageReport("torch-fp32", "failed", "x"),),
        "gates": (),
    },
    "nothing known of the bundle": {"contents": BundleSummary(), "confusion": None, "environment": {}},
    "no blocks": {"block_errors": BlockErrors("the bundle has no low-precision graph")},
    "details of all kinds": {
        "stages": (
            StageReport(
                "engine", "not run", "no GPU", details={"a": None, "b": True, "c": {}, "d": [{"e": [None]}]}
            ),
            StageReport(
                "triton", "run", details={"f": float("nan"), "g": (1, float("inf")), "h": {"i": False}}
            ),
        )
    },
    "metrics without a value": {"stages": (StageReport("onnx-fp16", "run", task_metrics=(UNDEFINED,)),)},
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_no_page_holds_a_value_as_python_writes_it(change: dict[str, Any]) -> None:
    others = {name: value for name, value in change.items() if name != "error"}
    report = replace(report_of(change.get("error", 1e-3)), **others)
    assert raw_values(render(report)) == []
    assert complaints(report.to_json()) == []


def test_a_hundred_thousand_texts_fit_two_megabytes() -> None:
    """Every stage has its charts, every text is long, and every other one has another label."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (100_000, 3)).astype(np.float32)
    other = logits + rng.normal(0, 2, logits.shape).astype(np.float32)
    metrics = measure(StageOutput(logits), StageOutput(other), rng.integers(0, 3, len(logits)))
    assert len(metrics.flips) > 20_000
    stages = tuple(StageReport(f"stage-{number}", "run", seconds=1, measures=metrics) for number in range(9))
    flips = tuple(
        FlipRow("stage-0", one.row + 1, "<word> " * 3000, "a", "b", "c", one) for one in metrics.flips
    )
    page = render(replace(report_of(), stages=stages, flips=flips))
    assert len(page.encode()) < 2_000_000
    assert page.count("<svg") == 2 * len(stages)
    assert f"The first 500 of {len(flips):,}" in page


def test_the_pictures_are_well_formed() -> None:
    for drawing in re.findall(r"<svg.*?</svg>", render(report_of()), re.DOTALL):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
        assert "inf" not in re.sub(r">[^<]*<", "><", drawing)


def test_the_flip_stands_in_the_table_and_in_the_picture() -> None:
    result = report_of()
    assert len(result.flips) == 1
    page = render(result)
    assert page.count('class="flip explained"') == 1
    assert "within error" in page
    assert "No label changed: every stage" in render(report_of(0.0))


def test_without_a_reference_the_page_says_so() -> None:
    stages = (StageReport("torch-fp32", "failed", "x"), StageReport("onnx-fp32", "failed", "y"))
    result = replace(report_of(), reference="", stages=stages, gates=(), flips=(), note="nothing ran")
    assert not result.passed
    assert "No stage answered" in render(result)


def test_junit_counts_match_and_control_characters_are_replaced() -> None:
    result = report_of()
    root = ElementTree.fromstring(junit_xml(result).encode())
    assert int(root.get("tests", "0")) == len(root.findall(".//testcase")) == len(result.gates) + 1
    assert int(root.get("failures", "0")) == len(root.findall(".//failure")) == len(result.failed_gates) == 1
    assert [suite.get("name") for suite in root] == [stage.name for stage in result.stages]


def test_the_verdict_on_each_stage() -> None:
    result = report_of()
    verdicts = [result.verdict_on(stage) for stage in result.stages]
    assert verdicts == ["reference", "passed", "verified", "failed"]


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=20))
def test_a_logarithmic_axis_holds_its_values_in_order(values: list[float]) -> None:
    scale = LogScale.over(values, 10, 500)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(10 <= place <= 500 for place in places)
    assert 2 <= len(scale.decades()) <= 9


def test_numbers_are_written_as_people_write_them() -> None:
    assert [scientific(value) for value in (0, 0.5, 12.345, 5e-5, 2.671e-3, float("inf"))] == [
        "0",
        "0.5",
        "12.3",
        "5 × 10⁻⁵",  # noqa: RUF001
        "2.67 × 10⁻³",  # noqa: RUF001
        "not finite",
    ]
