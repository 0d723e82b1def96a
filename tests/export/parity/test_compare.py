"""Two reports side by side: what counts as a regression, and what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bertmp
from bertmp.core.errors import InputError
from bertmp.export.parity.result import FORMAT
from tests.export.parity_bundles import Served, damage

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def sound(exported: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the healthy bundle, its FP32 graph served as well."""
    folder = tmp_path_factory.mktemp("sound")
    bundle = Path(shutil.copytree(exported, folder / "bundle"))
    served = [Served(bundle / "model.onnx")]
    assert bertmp.parity(bundle, labelled, report=folder / "report", extra_stages=served).passed
    return folder / "report"


def stage_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [stage for stage in report["stages"] if stage["name"] == name]
    return found  # type: ignore[no-any-return]


def gate_of(report: dict[str, Any], stage: str, name: str) -> dict[str, Any]:
    (found,) = [gate for gate in report["gates"] if (gate["stage"], gate["name"]) == (stage, name)]
    return found  # type: ignore[no-any-return]


def edited(report: Path, target: Path, edit: Edit) -> Path:
    """A copy of a real report with something changed."""
    content = json.loads((report / "report.json" if report.is_dir() else report).read_text())
    edit(content)
    target.write_text(json.dumps(content))
    return target


def regressions(before: Path, after: Path) -> list[tuple[str, str]]:
    return [(one.stage, one.name) for one in bertmp.compare(before, after).regressions]


class TestRealReports:
    def test_a_report_is_not_worse_than_itself(self, sound: Path) -> None:
        result = bertmp.compare(sound, sound / "report.json")
        assert not result.worse
        assert result.notes == ()
        assert {one.stage for one in result.figures} >= {"torch-fp32", "onnx-fp32", "onnx-fp16", "triton"}
        assert all(one.before == one.after for one in result.figures)

    def test_every_measure_and_task_metric_has_its_figure(self, sound: Path) -> None:
        report = json.loads((sound / "report.json").read_text())
        stage = stage_of(report, "onnx-fp16")
        found = {
            one.name: one.after for one in bertmp.compare(sound, sound).figures if one.stage == "onnx-fp16"
        }
        for name in ("max_error", "mean_error", "flips", "accuracy", "non_finite"):
            assert found[name] == stage["measures"][name]
        assert found["size_ratio"] == stage["size_ratio"]
        assert found["consistent"] is True
        assert {name: found[f"metric {name}"] for name in ("accuracy", "macro_f1", "matthews")} == {
            one["name"]: one["after"] for one in stage["task_metrics"]
        }

    def test_a_damaged_graph(self, bundle: Path, labelled: Path, sound: Path) -> None:
        damage(bundle, 0.5)
        served = [Served(bundle / "model.onnx")]
        assert bertmp.parity(bundle, labelled, extra_stages=served).verdict == "failed"
        result = bertmp.compare(sound, bundle)  # the bundle holds its report
        found = [(one.stage, one.name) for one in result.regressions]
        assert found[0] == ("", "verdict")
        assert {("onnx-fp16", name) for name in ("gate max_error", "max_error", "mean_error", "flips")} <= {
            *found
        }
        assert {stage for stage, _ in found} == {"", "onnx-fp16", "onnx-fp16-emulated"}
        assert result.notes == ()
        # The other way round it is a repair.
        assert not bertmp.compare(bundle, sound).worse

    def test_a_stage_that_no_longer_runs(self, bundle: Path, labelled: Path, sound: Path) -> None:
        bertmp.parity(bundle, labelled)  # without the served model, which nobody asked for
        result = bertmp.compare(sound, bundle)
        assert [(one.stage, one.name) for one in result.regressions] == [("triton", "verdict")]
        assert (
            result.regressions[0].sentence == "triton: it ran and no longer runs: it is no part of the chain"
        )

    def test_other_data_are_said_in_one_line(
        self, bundle: Path, labelled: Path, sound: Path, tmp_path: Path
    ) -> None:
        half = tmp_path / "half.tsv"
        half.write_text("".join(labelled.read_text().splitlines(keepends=True)[:30]))
        bertmp.parity(bundle, half, extra_stages=[Served(bundle / "model.onnx")])
        note = bertmp.compare(sound, bundle).notes[0]
        assert note.startswith("the reports are on different data: ")
        assert "(60 texts)" in note
        assert "(30 texts)" in note

    def test_another_limit_is_said(self, bundle: Path, labelled: Path, sound: Path, tmp_path: Path) -> None:
        gates = tmp_path / "gates.toml"
        gates.write_text("[onnx-fp16]\nmax_error = 0.5\nsize_ratio = false\n")
        served = [Served(bundle / "model.onnx")]
        bertmp.parity(bundle, labelled, gates=gates, extra_stages=served)
        notes = bertmp.compare(sound, bundle).notes
        assert len(notes) == 2
        assert notes[0].startswith("onnx-fp16: the limit of max_error was 0.05 and is now 0.5")
        assert notes[1] == "onnx-fp16: the gate size_ratio is no longer applied"

    def test_other_labels_are_said(self, sound: Path, tmp_path: Path) -> None:
        def rename(report: dict[str, Any]) -> None:
            report["bundle_summary"]["labels"][0] = "another"

        (note,) = bertmp.compare(sound, edited(sound, tmp_path / "other.json", rename)).notes
        assert note.startswith("the models have different labels")

    def test_another_task_is_refused(self, sound: Path, tmp_path: Path) -> None:
        def change(report: dict[str, Any]) -> None:
            report["bundle_summary"]["task"] = "regression"

        with pytest.raises(InputError, match="different tasks: classification and regression"):
            bertmp.compare(sound, edited(sound, tmp_path / "other.json", change))

    def test_a_server_asked_over_one_protocol_more_is_not_worse(self, sound: Path, tmp_path: Path) -> None:
        def only_grpc(report: dict[str, Any]) -> None:
            stage_of(report, "triton")["details"]["protocol"] = "grpc"

        def both(report: dict[str, Any]) -> None:
            text = json.dumps([report["stages"], report["gates"]]).replace('"triton"', '"triton-grpc"')
            report["stages"], report["gates"] = json.loads(text)

        before = edited(sound, tmp_path / "one.json", only_grpc)
        result = bertmp.compare(before, edited(before, tmp_path / "both.json", both))
        assert not result.worse
        assert "triton" not in {one.stage for one in result.figures}


def set_error(value: float, limit: float | None = None) -> Edit:
    """Another largest error of the FP16 graph, as parity would write it."""

    def edit(report: dict[str, Any]) -> None:
        stage_of(report, "onnx-fp16")["measures"]["max_error"] = value
        gate = gate_of(report, "onnx-fp16", "max_error")
        gate["measured"] = value
        gate["limit"] = limit or gate["limit"]

    return edit


def set_measure(name: str, value: float | None) -> Edit:
    def edit(report: dict[str, Any]) -> None:
        stage_of(report, "onnx-fp16")["measures"][name] = value

    return edit


def set_metric(value: Any, verdict: str = "equal") -> Edit:
    def edit(report: dict[str, Any]) -> None:
        for metric in stage_of(report, "onnx-fp16")["task_metrics"]:
            if metric["name"] == "matthews":
                metric["after"], metric["non_inferiority"]["verdict"] = value, verdict

    return edit


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [
        pytest.param(set_error(1e-3), set_error(4e-3), [], id="four times, below a tenth of the limit"),
        pytest.param(set_error(4e-3), set_error(7e-3), [], id="less than twice"),
        pytest.param(set_error(3e-3), set_error(7e-3), ["max_error"], id="twice and above a tenth"),
        pytest.param(set_error(3e-3), set_error(7e-3, 0.5), ["max_error"], id="with a looser limit"),
        pytest.param(set_measure("mean_error", 3e-3), set_measure("mean_error", 7e-3), ["mean_error"]),
        pytest.param(set_measure("mean_error", 3e-3), set_measure("mean_error", None), ["mean_error"]),
        pytest.param(set_measure("flips", 1), set_measure("flips", 1), []),
        pytest.param(set_measure("flips", 1), set_measure("flips", 2), ["flips"]),
        pytest.param(set_measure("flips", 2), set_measure("flips", 1), []),
        pytest.param(set_measure("non_finite", 0), set_measure("non_finite", 1), ["non_finite"]),
        pytest.param(set_measure("accuracy", 0.95), set_measure("accuracy", 0.949), []),
        pytest.param(set_measure("accuracy", 0.95), set_measure("accuracy", 0.9489), ["accuracy"]),
        pytest.param(set_metric(0.8), set_metric(0.7995), []),
        pytest.param(set_metric(0.8), set_metric(0.799), ["metric matthews"]),
        pytest.param(set_metric(0.8), set_metric("nan"), ["metric matthews"]),
        pytest.param(set_metric(0.8), set_metric(0.8, "worse"), ["metric matthews"]),
        pytest.param(set_metric(0.8, "worse"), set_metric(0.8, "worse"), []),
    ],
)
def test_what_is_worse(sound: Path, tmp_path: Path, old: Edit, new: Edit, worse: list[str]) -> None:
    sides = edited(sound, tmp_path / "old.json", old), edited(sound, tmp_path / "new.json", new)
    assert regressions(*sides) == [("onnx-fp16", name) for name in worse]


def test_more_texts_with_the_same_share_of_flips(sound: Path, tmp_path: Path) -> None:
    def edit(report: dict[str, Any], share: int) -> None:
        measures = stage_of(report, "onnx-fp16")["measures"]
        measures["units"], measures["flips"] = 60 * share, share

    before = edited(sound, tmp_path / "one.json", lambda report: edit(report, 1))
    after = edited(sound, tmp_path / "ten.json", lambda report: edit(report, 10))
    assert regressions(before, after) == []


def test_a_contradiction_without_a_gate(sound: Path, tmp_path: Path) -> None:
    def edit(report: dict[str, Any]) -> None:
        stage_of(report, "onnx-fp16")["consistency"]["results"][0]["passed"] = False

    assert regressions(sound, edited(sound, tmp_path / "new.json", edit)) == [("onnx-fp16", "consistent")]


class TestUnusable:
    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda report: report.update(format=99), f"a parity report of format 99, not {FORMAT}"),
            (lambda report: report.pop("stages"), "not a parity report"),
            (lambda report: report.update(verdict="fine"), "the parity report is damaged"),
            (lambda report: report.update(stages={"a": 1}), "the parity report is damaged"),
            (lambda report: report["stages"][1].pop("measures"), "the parity report is damaged"),
            (lambda report: report["stages"][1].update(status="lost"), "the parity report is damaged"),
            (lambda report: report["gates"][0].update(passed="yes"), "the parity report is damaged"),
            (lambda report: report["data"].update(texts="many"), "the parity report is damaged"),
        ],
    )
    def test_another_format_or_damage(self, sound: Path, tmp_path: Path, edit: Edit, message: str) -> None:
        with pytest.raises(InputError, match=message):
            bertmp.compare(sound, edited(sound, tmp_path / "bad.json", edit))

    def test_nothing_there(self, sound: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no report\.json or parity/report\.json"):
            bertmp.compare(tmp_path, sound)
        with pytest.raises(InputError, match="no such file"):
            bertmp.compare(sound, tmp_path / "none.json")
        (tmp_path / "cut.json").write_text((sound / "report.json").read_text()[:-100])
        with pytest.raises(InputError, match="not a JSON file"):
            bertmp.compare(sound, tmp_path / "cut.json")


class TestCommand:
    def test_not_worse(self, sound: Path, run_bertmp: Callable[..., Any]) -> None:
        done = run_bertmp("compare", sound, sound)
        assert done.returncode == 0, done.stderr
        first, equal, *_ = done.stdout.splitlines()
        assert first == "not worse; parity passed before, passed after"
        assert equal.endswith("figures are equal; --json has all of them")

    def test_regressions_come_first(
        self, sound: Path, tmp_path: Path, run_bertmp: Callable[..., Any]
    ) -> None:
        after = edited(sound, tmp_path / "new.json", set_measure("flips", 3))
        done = run_bertmp("compare", sound, after)
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[0] == "worse: 1 regression; parity passed before, passed after"
        assert lines[1] == "onnx-fp16: 3 of 60 labels change, 0 of 60 did"
        rows = [line.split() for line in lines if line.startswith((" onnx-", " torch-", " triton"))]
        assert rows[0] == ["onnx-fp16", "flips", "0", "3", "worse"]
        assert all(row[-1] != "worse" for row in rows[1:])

    def test_json(self, sound: Path, tmp_path: Path, run_bertmp: Callable[..., Any]) -> None:
        after = edited(sound, tmp_path / "new.json", set_measure("flips", 3))
        done = run_bertmp("compare", sound, after, "--json")
        assert done.returncode == 1
        found = json.loads(done.stdout)
        assert found["worse"] is True
        assert [(one["stage"], one["name"]) for one in found["regressions"]] == [("onnx-fp16", "flips")]

    def test_an_unusable_report_is_one_line(
        self, sound: Path, tmp_path: Path, run_bertmp: Callable[..., Any]
    ) -> None:
        after = edited(sound, tmp_path / "new.json", lambda report: report.update(gates=None))
        done = run_bertmp("compare", sound, after)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: the parity report is damaged (")
