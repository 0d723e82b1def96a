"""Faults of a served copy that its hashes do not give away, found by parity over the wire."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bertmp import export_checkpoint, parity
from bertmp.export.parity.result import ParityReport
from bertmp.serve.parity_stage import TritonStage
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer
from tests.conftest import RunBertmp
from tests.serve.bundles import LABELS, deploy, make_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("sound"), minilm, seed=0)


@pytest.fixture(scope="module")
def later(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the same model after one more step with a tiny learning rate."""
    folder = tmp_path_factory.mktemp("later")
    checkpoint = Path(shutil.copytree(bundle.parent / "checkpoint", folder / "checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"] * (1 + 1e-6)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return export_checkpoint(checkpoint, folder / "bundle", fp16=False).bundle


@pytest.fixture(scope="module")
def data(trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.tsv"
    lines = (trec / "test.tsv").read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{line}\n" for line in lines[:70]), encoding="utf-8")
    return path


def keep_case(version: Path) -> None:
    file = version / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    assert tokenizer["normalizer"]["lowercase"] is True
    tokenizer["normalizer"]["lowercase"] = False
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def permute_answers(version: Path) -> None:
    """The labels that texts are answered with; the model's `labels.txt` stays."""
    file = version / "settings.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["labels"] = [*settings["labels"][1:], settings["labels"][0]]
    file.write_text(json.dumps(settings), encoding="utf-8")


def permute_names(version: Path) -> None:
    """The names of the probabilities; the labels of the answers stay."""
    names = [*LABELS[1:], LABELS[0]]
    (version.parent / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def mix_rows(version: Path) -> None:
    file = version / "model.py"
    code = file.read_text(encoding="utf-8")
    mixing = code.replace("zip(asked.rows, asked.scores)", "zip(asked.rows, asked.scores[::-1])")
    assert mixing != code
    file.write_text(mixing, encoding="utf-8")


FAULTS: dict[str, Callable[[Path], None]] = {
    "keep_case": keep_case,
    "permute_answers": permute_answers,
    "permute_names": permute_names,
    "mix_rows": mix_rows,
}


@pytest.fixture(scope="module")
def server(
    triton: None, bundle: Path, later: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A model for each fault, a sound one, and one of the bundle after one more step."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    deploy(later, "later", repository)
    for name in ("sound", *FAULTS):
        deploy(bundle, name, repository)
    for name, fault in FAULTS.items():
        fault(repository / name / "1")
    with TritonServer(ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)) as running:
        yield running


def served(bundle: Path, data: Path, server: RunningServer, model: str, report: Path) -> ParityReport:
    return parity(bundle, data, report=report, extra_stages=[TritonStage(server.grpc, model)])


def test_the_sound_model_passes(bundle: Path, data: Path, server: RunningServer, tmp_path: Path) -> None:
    result = served(bundle, data, server, "sound", tmp_path)
    assert result.verdict == "passed", result.headline()
    assert "same_files" in {gate.name for gate in result.gates if gate.stage == "triton"}


@pytest.mark.parametrize(
    ("model", "gates"),
    [
        ("keep_case", {"flips", "max_probability_error", "same_files", "adversarial"}),
        ("permute_answers", {"flips", "adversarial"}),
        ("permute_names", {"runs", "adversarial"}),
        ("mix_rows", {"flips", "max_probability_error", "consistent", "adversarial"}),
    ],
)
def test_a_fault_of_the_served_copy_is_found(
    bundle: Path, data: Path, server: RunningServer, tmp_path: Path, model: str, gates: set[str]
) -> None:
    result = served(bundle, data, server, model, tmp_path)
    assert result.verdict == "failed"
    assert {gate.stage for gate in result.failed_gates} == {"triton"}
    assert {gate.name for gate in result.failed_gates} == gates


def test_a_served_version_that_is_one_step_older_is_found_by_its_graph(
    bundle: Path, data: Path, server: RunningServer, run_bertmp: RunBertmp, tmp_path: Path
) -> None:
    done = run_bertmp(
        *("parity", bundle, "--data", data, "--report", tmp_path, "--json"),
        *("--server", f"grpc://{server.grpc}", "--server", f"http://{server.http}", "--model", "later"),
    )
    assert done.returncode == 1, done.stderr
    failed = [gate for gate in json.loads(done.stdout)["gates"] if not gate["passed"]]
    assert [(gate["stage"], gate["name"]) for gate in failed] == [
        ("triton-grpc", "same_files"),
        ("triton-http", "same_files"),
    ]
    assert "another model.onnx than the bundle" in failed[0]["sentence"]
