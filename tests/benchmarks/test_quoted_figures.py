"""The figures that the documents quote are those of the committed results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")


def results(name: str) -> dict[str, Any]:
    return dict(json.loads((REPOSITORY / "benchmarks" / "results" / name).read_text(encoding="utf-8")))


def table_row(label: str, start: str) -> list[str]:
    """The cells after `label` in the first row of that label below the heading `start`."""
    _, found, section = TEXT.partition(f"\n{start}\n")
    assert found, start
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] == label:
            return cells[1:]
    raise AssertionError(f"no row {label}")


def rows_of(tool: str) -> Iterator[dict[str, Any]]:
    return (row for row in results("precision.json")["rows"] if row["tool"] == tool)


@pytest.mark.parametrize(
    ("label", "part", "values"),
    [
        ("fine-tuning, examples/s", "finetune", ("ours", "peer", "ratio")),
        ("pre-training, tokens/s", "pretrain", ("ours", "peer", "ratio")),
    ],
)
def test_training_table_quoted_speeds_match_results(label: str, part: str, values: tuple[str, ...]) -> None:
    found = results("train.json")[part]
    quoted = table_row(label, "## What was found in training")
    for text, name in zip(quoted, values, strict=False):
        digits = len(text.partition(".")[2])
        assert float(text.replace(",", "")) == round(found[name], digits), name


def test_training_table_quoted_accuracy_memory_and_loss_match_results() -> None:
    heading = "## What was found in training"
    finetune, pretrain = results("train.json")["finetune"], results("train.json")["pretrain"]
    for side, cell in zip(("ours", "peer"), table_row("accuracy, mean", heading), strict=False):
        assert cell == f"{finetune['accuracy'][side]:.4f}"
    for side, cell in zip(("ours", "peer"), table_row("peak memory, MB", heading), strict=False):
        assert cell == f"{finetune['peak_memory_bytes'][side] / 1e6:.0f}"
    losses = table_row("loss over the last half of the steps", heading)
    for side, cell in zip(("ours", "peer"), losses, strict=False):
        assert cell == f"{pretrain['loss'][side]:.3f} ± {pretrain['loss_standard_error'][side]:.3f}"


def test_training_text_quoted_step_time_matches_results() -> None:
    found = results("train.json")["finetune"]
    epochs, size = found["settings"]["epochs"], found["settings"]["batch_size"]
    milliseconds = [
        1e3 * run["seconds"] / (epochs * math.ceil(run["examples"] / epochs / size))
        for run in found["runs"]
        if run["side"] == "ours"
    ]
    quoted = re.search(r"takes (\d+) to (\d+) ms", TEXT)
    assert quoted
    assert (int(quoted[1]), int(quoted[2])) == (round(min(milliseconds)), round(max(milliseconds)))


@pytest.mark.parametrize("graph", ["quickstart", "bert-base", "sdpa", "opset13", "overflow"])
@pytest.mark.parametrize(
    ("column", "tool"), [(0, "bertmp"), (1, "ModelOpt AutoCast"), (2, "onnxruntime.transformers")]
)
def test_conversion_table_quoted_errors_match_results(graph: str, column: int, tool: str) -> None:
    calibrated = graph == "overflow"
    label = f"`{graph}`, calibrated" if calibrated else f"`{graph}`"
    cell = table_row(label, "## What was found in conversion")[column]
    tool = f"{tool}, calibrated" if calibrated and tool == "bertmp" else tool
    (row,) = (row for row in rows_of(tool) if row["graph"] == graph)
    if row["max_error"] is None:
        assert cell == "not finite"
        return
    quoted = re.match(r"(\d+) casts, (\S+) \((\S+)\)(?:, ([\d.]+) s)?$", cell)
    assert quoted, cell
    assert int(quoted[1]) == row["casts"]
    assert float(quoted[2]) == float(f"{row['max_error']:.1e}")
    assert float(quoted[3]) == float(f"{row['rounded']['max_error']:.1e}")
    if quoted[4]:
        assert float(quoted[4]) == float(f"{row['seconds']:.2g}")


def test_conversion_text_quoted_size_range_covers_files_that_load() -> None:
    sizes = [row["size_ratio"] for row in results("precision.json")["rows"] if row["loads"]]
    quoted = re.search(r"Files that load are ([\d.]+) to ([\d.]+) of FP32", TEXT)
    assert quoted
    assert (float(quoted[1]), float(quoted[2])) == (round(min(sizes), 3), round(max(sizes), 3))


def test_conversion_text_mean_and_rounded_errors_are_below_autocast() -> None:
    """As the text says: on every graph; on `overflow` with calibration."""
    ours = {row["graph"]: row for row in (*rows_of("bertmp"), *rows_of("bertmp, calibrated"))}
    for row in rows_of("ModelOpt AutoCast"):
        assert ours[row["graph"]]["mean_error"] < row["mean_error"], row["graph"]
        assert ours[row["graph"]]["rounded"]["max_error"] < row["rounded"]["max_error"], row["graph"]


def test_readme_quoted_pipeline_time_matches_results() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    quoted = re.search(r"engine with verified precision in (\d+) s", readme)
    assert quoted
    assert int(quoted[1]) == round(results("pipeline.json")["total_seconds"])


SERVING = "## What was found in serving"


@pytest.mark.parametrize(
    ("label", "system"),
    [
        ("`bertmp serve`, FP32", "bertmp"),
        ("`bertmp serve`, BF16", "bertmp bf16"),
        ("FastAPI + ONNX Runtime", "FastAPI + ONNX Runtime"),
        ("FastAPI + `transformers`", "FastAPI + transformers"),
    ],
)
def test_serving_table_quoted_speeds_match_results(label: str, system: str) -> None:
    rows = {row["clients"]: row for row in results("serve.json")["rows"] if row["system"] == system}
    most = rows[16]
    found = (most["texts_per_second"], most["p99_ms"], rows[4]["texts_per_second"], rows[1]["p50_ms"])
    for text, value in zip(table_row(label, SERVING), found, strict=True):
        assert float(text) == round(value, len(text.partition(".")[2])), text


@pytest.mark.parametrize(
    ("label", "keys"),
    [
        ("FP32, times the best peer's rate", ("ratio_best_peer",)),
        ("FP32, p99 as a share of the best peer's", ("p99_to_best_peer",)),
        ("BF16, times the best peer's rate", ("ratio_best_peer_bf16",)),
        ("one client, p50 above in process, ms", ("one_client_ms_above",)),
        ("p99 at 70 % of the load, times in process", ("at_70_percent", "p99_to_in_process")),
        ("load generators, ratio of their rates", ("generators", "ratio")),
        ("20 swaps: failed requests of {swaps[requests]:,}", ("swaps", "failures")),
        (
            "20 swaps: answers of an old version after `deploy` returned",
            ("swaps", "answers_of_the_old_version"),
        ),
        ("20 swaps: longest answer above the usual longest, ms", ("swaps", "longest_ms_above")),
    ],
)
def test_serving_goals_quoted_figures_match_results(label: str, keys: tuple[str, ...]) -> None:
    found: Any = results("serve.json")
    text, _ = table_row(label.format(**found), SERVING)
    for key in keys:
        found = found[key]
    assert float(text) == round(found, len(text.partition(".")[2]))


def test_serving_text_quoted_shares_of_the_bounds_match_results() -> None:
    found = results("serve.json")
    fp32 = re.search(r"the server reaches\s+(\d+) % of what", TEXT)
    bf16 = re.search(r"In BF16,\s+(\d+) % of", TEXT)
    assert fp32
    assert bf16
    assert int(fp32[1]) == round(100 * found["ratio_fp32_bound"])
    assert int(bf16[1]) == round(100 * found["ratio_bf16_bound"])
