"""Activation ranges: what a run saves for the export is what the model does on the evaluation data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bertmp import train
from bertmp.model.checkpoint import load_checkpoint
from bertmp.model.packed import pack
from bertmp.training.stability.activation_ranges import recording


@pytest.fixture(scope="module")
def files(trec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """64 questions to train on and 40 others to evaluate on."""
    folder = tmp_path_factory.mktemp("data")
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()[:104]
    (folder / "train.tsv").write_text("".join(f"{line}\n" for line in lines[:64]), encoding="utf-8")
    (folder / "test.tsv").write_text("".join(f"{line}\n" for line in lines[64:]), encoding="utf-8")
    return folder / "train.tsv", folder / "test.tsv"


def saved(data: Path, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    train("classification", data, model, out, steps=3, batch_size=16, **options)
    return json.loads((out / "final" / "activation-ranges.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("evaluated", [True, False])
def test_they_are_those_of_the_saved_checkpoint(
    evaluated: bool, files: tuple[Path, Path], tiny: Path, tmp_path: Path
) -> None:
    data = files[1] if evaluated else files[0]
    ranges = saved(files[0], tiny, tmp_path / "run", eval_data=files[1] if evaluated else None)
    assert (ranges["format"], ranges["precision"], ranges["data"]) == (1, "fp32", str(data))

    loaded = load_checkpoint(tmp_path / "run" / "final")
    texts = [line.split("\t")[1] for line in data.read_text(encoding="utf-8").splitlines()]
    seen: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            seen[name] = max(seen.get(name, 0.0), float(output.detach().abs().max()))

        return hook

    for name, module in loaded.model.named_modules():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        for row in loaded.tokenizer.encode(texts):
            states = loaded.model.encode(pack([row], {}))
            loaded.model.classifier(loaded.model.bert.pool(states[:1]))
    expected = {name: value for name, value in seen.items() if "dropout" not in name}
    found = {name: each["max_abs"] for name, each in ranges["modules"].items() if "dropout" not in name}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4)
    norms = {name for name, each in ranges["modules"].items() if "input_max_abs" in each}
    assert norms == {name for name in expected if name.endswith("LayerNorm")}


def test_recording_leaves_no_hook_and_shows_what_is_not_finite() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    with recording(layers) as ranges:
        layers(torch.tensor([[1.0, 2.0]]))
        layers(torch.tensor([[float("inf"), 0.0]]))
    assert ranges is not None
    assert not torch.isfinite(ranges["0"]["max_abs"])
    assert all(not layer._forward_hooks for layer in layers)
