"""What a bundle is compared with, and on what: the checkpoint, the labels, the data file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bertmp import parity
from bertmp.core.errors import InputError
from bertmp.export.bundle import Bundle, Manifest
from bertmp.export.parity.gates import override
from tests.export.parity_bundles import adopt, damage


def test_a_file_that_is_read_as_conll_is_said_to_be(bundle: Path, tmp_path: Path) -> None:
    data, said = tmp_path / "words.conll", []
    data.write_text("w1\tB-PER\nw2\tO\n\nw3\tO\n")
    parity(bundle, data, progress=lambda message, *_: said.append(message))
    assert said[0] == f"{data}: read as CoNLL, 2 sentences"


def test_labels_in_another_order_than_the_checkpoints_fail(bundle: Path, labelled: Path) -> None:
    first, second, third = (bundle / "labels.txt").read_text().splitlines()
    (bundle / "labels.txt").write_text(f"{second}\n{first}\n{third}\n")
    adopt(bundle)
    result = parity(bundle, labelled)
    assert [(gate.stage, gate.name) for gate in result.failed_gates] == [("torch-fp32", "as_exported")]
    assert "labels.txt has place, animal" in result.failed_gates[0].sentence
    off = override({"torch-fp32": {"as_exported": False}}, "")
    assert "as_exported" not in {gate.name for gate in parity(bundle, labelled, gates=off).failed_gates}


def test_unlabelled_texts_are_compared_without_accuracy(
    bundle: Path, texts: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(texts[:20]))
    result = parity(bundle, data)
    assert result.passed
    assert result.stage("onnx-fp16").measures.accuracy is None  # type: ignore[union-attr]
    assert "accuracy_points" not in {gate.name for gate in result.gates}
    damage(bundle, 0.5)
    assert not parity(bundle, data).passed


def test_a_label_that_the_model_does_not_know_names_its_line(bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("animal\tw1\n\nmineral\tw2\n")
    with pytest.raises(InputError, match=r"label 'mineral' \(.*data.tsv, line 3\)"):
        parity(bundle, data)
    assert not (bundle / "parity").exists()


def test_without_the_checkpoint_the_fp32_graph_is_the_reference(
    bundle: Path, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    manifest = Manifest.load(bundle)
    moved = replace(manifest.stages["export"], settings={"checkpoint": str(tmp_path / "gone")})
    manifest.with_stage("export", moved).save(bundle)
    result = parity(bundle, labelled)
    assert (result.verdict, result.reference) == ("incomplete", "onnx-fp32")
    assert [one.stage for one in result.unchecked] == ["torch-fp32"]
    assert parity(bundle, labelled, allow_incomplete=["torch-fp32"]).verdict == "passed"
    assert "not on this machine" in result.note
    assert "not on this machine" in (result.folder / "report.html").read_text()
    gates = [gate.name for gate in result.gates if gate.stage == "onnx-fp32"]
    assert gates == ["non_finite", "consistent", "adversarial"]
    assert parity(bundle, labelled, checkpoint=checkpoint).reference == "torch-fp32"
    with pytest.raises(InputError, match="not on this machine"):
        parity(bundle, labelled, checkpoint=tmp_path / "gone")


def test_a_model_for_pairs_is_not_compared_on_single_texts(bundle: Path, labelled: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "text_pairs": True}))
    manifest = Manifest.load(bundle)
    entry = manifest.stages["export"]
    entry = replace(entry, outputs={name: Bundle(bundle).sha256(name) for name in entry.outputs})
    manifest.with_stage("export", entry).save(bundle)
    with pytest.raises(InputError, match="trained on pairs of texts"):
        parity(bundle, labelled)


def test_another_checkpoint_is_not_the_reference(
    bundle: Path, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="not the one that was exported"):
        parity(bundle, labelled, checkpoint=other)


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_a_stale_bundle_is_refused(bundle: Path, labelled: Path, name: str) -> None:
    with (bundle / name).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match=f"stale: {name} changed"):
        parity(bundle, labelled)
