"""`report.json` against its published schema."""

from __future__ import annotations

import json
from pathlib import Path

from jsonschema import Draft202012Validator

from bertmp import export_checkpoint, parity
from bertmp.export.parity.result import FORMAT
from tests.export.parity import report_checks
from tests.export.parity.report_checks import complaints
from tests.export.parity.test_report import report_of
from tests.export.parity_bundles import Served, damage


def test_a_passing_failing_and_served_report_keep_to_the_schema(bundle: Path, labelled: Path) -> None:
    passed = parity(bundle, labelled, extra_stages=[Served(bundle / "model.onnx")])
    damage(bundle, 0.5)
    failed = parity(bundle, labelled, require=["triton"])
    assert (passed.verdict, failed.verdict) == ("passed", "failed")
    assert failed.stage("onnx-fp16").localisation is not None
    for report in (passed, failed):
        written = json.loads((report.folder / "report.json").read_text(encoding="utf-8"))
        assert complaints(report.to_json()) == []
        assert complaints(written) == []


def test_reports_of_other_bundles_keep_to_the_schema(
    checkpoint: Path, texts: list[str], tmp_path: Path
) -> None:
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", fp16=False).bundle
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(texts[:5]))
    assert complaints(parity(bundle, data).to_json()) == []


def test_numbers_that_are_not_finite_and_hostile_words_keep_to_the_schema() -> None:
    for error in (1e-3, float("nan"), float("inf")):
        assert complaints(report_of(error).to_json()) == []


def test_the_schema_names_every_field_and_this_format() -> None:
    schema = report_checks.schema()
    Draft202012Validator.check_schema(schema)
    report = report_of().to_json()
    assert set(schema["properties"]) == set(report)
    assert schema["properties"]["format"]["const"] == FORMAT
    assert complaints({**report, "new": 1}) != []
    assert complaints({name: value for name, value in report.items() if name != "gates"}) != []
