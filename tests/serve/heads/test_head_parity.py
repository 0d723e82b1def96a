"""Parity's served stage for every head, and what it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bertmp
from bertmp.serve.parity_stage import TritonStage
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.server import TritonServer
from tests.export.prediction.heads import Heads
from tests.serve.bundles import deploy
from tests.serve.conftest import Served
from tests.serve.heads.models import MODELS, PAIRS, PROTOCOLS, SECONDS, bundle_of, texts_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", MODELS)
def test_parity_compares_every_served_head(
    served: Served, heads: Heads, tmp_path: Path, model: str, protocol: Any
) -> None:
    data, stage = data_for_parity(model, tmp_path), TritonStage(served.url(protocol), model, protocol)
    result = bertmp.parity(bundle_of(model, heads), data, report=tmp_path / "report", extra_stages=[stage])
    assert result.stage("triton").status == "run", result.stage("triton").reason
    assert not [gate.sentence for gate in result.failed_gates if gate.stage == "triton"]
    names = {gate.name for gate in result.gates if gate.stage == "triton"}
    assert names >= {"consistent", "same_files"}
    by_number = MODELS[model][0] in ("classification", "next-sentence", "multi-label-classification")
    assert ("same_answers" in names) is not by_number


def data_for_parity(model: str, folder: Path) -> Path:
    """The texts in a file; words with labels are not among them."""
    data = folder / "texts.tsv"
    names = ("text", "text_pair") if model in PAIRS else ("text",)
    columns = (texts_of(model), SECONDS) if model in PAIRS else (texts_of(model),)
    rows = [names, *zip(*columns, strict=True)]
    data.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return data


def swap_labels(version: Path) -> None:
    """Other names for the classes of entities."""
    settings = json.loads((version / "settings.json").read_text())
    labels = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    (version / "settings.json").write_text(json.dumps({**settings, "labels": labels}))


def take_other_states(version: Path) -> None:
    """The second token's states in place of the mean."""
    change(version / "answers" / "texts.py", "states[: len(ids)].mean(axis=0)", "states[1]")


def leave_out_the_best(version: Path) -> None:
    """The second best word in place of the best."""
    change(version / "answers" / "spans.py", "[: self.candidates]", "[1 : self.candidates + 1]")


def change(path: Path, right: str, wrong: str) -> None:
    code = path.read_text()
    assert right in code
    path.write_text(code.replace(right, wrong))


FAULTS = {"entities": swap_labels, "embeddings": take_other_states, "masked-lm": leave_out_the_best}


@pytest.mark.parametrize("model", FAULTS)
def test_parity_finds_a_served_head_that_answers_otherwise(
    triton: None, heads: Heads, tmp_path: Path, model: str
) -> None:
    """The graph and the tokenizer are the bundle's; what is made of its numbers is not."""
    bundle, repository = bundle_of(model, heads), tmp_path / "repository"
    deploy(bundle, model, repository)
    FAULTS[model](repository / model / "1")
    data = data_for_parity(model, tmp_path)
    with TritonServer(ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)) as running:
        stage, report = TritonStage(running.grpc, model), tmp_path / "report"
        result = bertmp.parity(bundle, data, report=report, extra_stages=[stage])
    assert {(gate.stage, gate.name) for gate in result.failed_gates} == {("triton", "same_answers")}
