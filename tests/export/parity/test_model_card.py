"""The model card: what it says is what the report says, and no name becomes markup."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertmp import parity
from bertmp.export.bundle import Bundle
from bertmp.export.parity.model_card import model_card
from bertmp.report.markdown import code, front_matter, plain, table
from tests.export.parity_bundles import LABELS, damage

HOSTILE = (
    "plain", "a: b", "- x", "'\"", "# not a head", "{a}", "`one` ``two``", "`", "a|b", "<script>x</script>",
    "---", "...", "\u2028", "\x85x", "\x07", "\ufeff", "🦊", "null", "1e3", "yes", "[x](http://y)", "a\\",
    "&amp;", " ",
)  # fmt: skip


def metadata(card: str) -> dict[str, Any]:
    head, block, _ = card.split("---\n", 2)
    assert head == ""
    return dict(yaml.safe_load(block))


def test_the_card_lies_beside_the_report_and_has_its_figures(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    card = (bundle / "parity/MODEL_CARD.md").read_text(encoding="utf-8")
    report = json.loads((bundle / "parity/report.json").read_text(encoding="utf-8"))
    assert not (bundle / "MODEL_CARD.md").exists()
    assert "**passed**" in card
    (half,) = (one for one in report["stages"] if one["name"] == "onnx-fp16")
    accuracy = next(one for one in half["task_metrics"] if one["name"] == "accuracy")
    found = metadata(card)
    assert (found["library_name"], found["pipeline_tag"]) == ("onnx", "text-classification")
    assert not {"language", "base_model", "license"} & set(found)
    (index,) = found["model-index"]
    (row,) = index["results"]
    assert row["dataset"]["args"] == {"sha256": report["data"]["sha256"]}
    scores = {one["name"]: one["value"] for one in row["metrics"]}
    assert scores["accuracy of onnx-fp16"] == accuracy["after"]
    assert scores["accuracy of torch-fp32"] == accuracy["before"]
    interval = accuracy["non_inferiority"]["difference"]
    assert f"95% interval {interval['low']:+.4f} to {interval['high']:+.4f}" in card
    assert accuracy["non_inferiority"]["verdict"] in card
    assert "- engine: no engine was built" in card
    for file in report["bundle_summary"]["files"]:
        assert f"| `{file['name']}` | {file['size']:,} | `{file['sha256']}` |" in card
    counts = result.contents.precisions
    assert f"{counts['fp16']:,} FP16" in card
    assert f"{counts['fp32']:,} FP32" in card
    assert "with opset 18" in card
    assert "2 layers, 128 hidden size, 4 attention heads" in card
    assert all(code(label) in card for label in LABELS)


def test_the_hubs_own_reader_takes_it(bundle: Path, labelled: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    parity(bundle, labelled)
    card = hub.ModelCard.load(bundle / "parity/MODEL_CARD.md")
    results = card.data.eval_results
    assert {one.metric_type for one in results} == {"accuracy", "f1", "matthews_correlation"}
    assert {one.dataset_name for one in results} == {labelled.name}
    assert all(math.isfinite(one.metric_value) for one in results)
    assert card.data.model_name == bundle.name


def test_without_labels_no_score_is_claimed(bundle: Path, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("\n".join(texts))
    parity(bundle, tmp_path / "plain.txt")
    found = metadata((bundle / "parity/MODEL_CARD.md").read_text(encoding="utf-8"))
    assert not {"model-index", "metrics"} & set(found)


def test_a_failed_gate_and_its_reason_stand_at_the_head(bundle: Path, labelled: Path) -> None:
    damage(bundle, 0.5)
    result = parity(bundle, labelled)
    card = (bundle / "parity/MODEL_CARD.md").read_text(encoding="utf-8")
    head = card.split("## The model")[0]
    assert "**failed**" in head
    assert all(plain(gate.sentence) in head for gate in result.failed_gates)


def test_hostile_names_stay_text(bundle: Path, labelled: Path, tmp_path: Path) -> None:
    result = parity(bundle, labelled)
    odd = bundle.rename(tmp_path / 'x: "y" #z\n---\n`|<b>')
    (odd / "labels.txt").write_bytes("\n".join(HOSTILE).encode())
    data = replace(result.data, file=Path("a|b`: #\u2028.tsv"))
    card = model_card(Bundle.open(odd), replace(result, bundle=odd, data=data))
    found = metadata(card)
    assert found["model-index"][0]["name"] == odd.name
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == data.file.name
    assert all(one.isprintable() or one == "\n" for one in card)
    heads = [line for line in card.split("\n") if line.startswith("#")]
    assert len(heads) == 7, heads
    assert "<script>x</script>" in card
    assert "`<script>x</script>`" in card
    lines = card.split("\n")
    start = lines.index("| Stage | Verdict | Largest error | Labels changed | Accuracy |")
    assert {line.count("|") - line.count("\\|") for line in lines[start : start + 5]} == {6}


def test_many_and_long_labels_are_shortened(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    (bundle / "labels.txt").write_text("\n".join(["x" * 10_000] * 5000))
    card = model_card(Bundle.open(bundle), result)
    assert "5,000 labels" in card
    assert "and 4,900 more" in card
    assert len(card) < 50_000


@pytest.mark.parametrize("text", HOSTILE)
def test_front_matter_gives_every_text_back(text: str) -> None:
    values = {"name": text, "list": [text, {"a": text, "b": [text]}]}
    block = front_matter(values)
    assert yaml.safe_load(block.removeprefix("---").removesuffix("---")) == values
    assert len(block.split("\n")) == 8


def test_front_matter_gives_every_number_back() -> None:
    values = {"numbers": [1, 0.5, 1e-05, 2.5e-07, 1e16, -3.0, True, False]}
    assert yaml.safe_load(front_matter(values).strip("-")) == values
    assert front_matter({"a": math.nan, "b": None, "c": "", "d": [], "e": [{}]}) == "---\n---"


def test_code_holds_any_backtick_and_tables_any_bar() -> None:
    assert code("a`b") == "``a`b``"
    assert code("`") == "`` ` ``"
    assert code("x\ny\u2028z\x07") == "`x y zU+0007`"
    assert table(("a", "b"), [(code("x|y"), plain("*z*"))])[2] == "| `x\\|y` | \\*z\\* |"


def test_the_card_does_not_offer_what_deploy_refuses(bundle: Path, labelled: Path) -> None:
    parity(bundle, labelled)
    card = (bundle / "parity/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "bertmp deploy BUNDLE --name NAME\n" in card
    parity(bundle, labelled, require=["triton"])
    card = (bundle / "parity/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "bertmp deploy BUNDLE --name NAME --allow-incomplete\n" in card
    damage(bundle, 0.5)
    assert parity(bundle, labelled).verdict == "failed"
    card = (bundle / "parity/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "bertmp predict" in card
    assert "bertmp deploy" not in card
