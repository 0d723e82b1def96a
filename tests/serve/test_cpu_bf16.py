"""BF16 on a processor: parity decides, the version carries it, and whoever lacks it serves FP32."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bertmp import deploy, export_checkpoint, models, parity, rollback
from bertmp.core.io import read_json
from bertmp.data.tokenizer import Tokenizer
from bertmp.environment.server_bf16 import why_no_bf16
from bertmp.environment.triton_install import find_runtime
from bertmp.export import bundle as names
from bertmp.export import cpu_session
from bertmp.export.bundle import Bundle
from bertmp.export.parity.gates import DEFAULTS
from bertmp.export.parity.result import ParityReport
from bertmp.model.checkpoint import load_checkpoint, save_checkpoint
from bertmp.serve import deployable
from bertmp.serve.audit import read_audit
from bertmp.serve.client import Client
from bertmp.serve.golden import GOLDEN
from bertmp.serve.parity_stage import TritonStage
from bertmp.serve.repository import version_folder
from tests.serve.bundles import POSITIONS, SAMPLES, altered, answer_in_process, make_bundle
from tests.serve.conftest import Served

pytestmark = pytest.mark.cpu_bf16

STAGE = "cpu-bf16"
WITHOUT_LOW = ("onnx-fp16", "onnx-fp16-emulated")
BOUND = 0.125
"""Half of what parity lets a logit be off: a probability is off by no more."""


@pytest.fixture(scope="module")
def with_bf16(triton: None) -> None:
    """Skips where no server of this machine runs BF16."""
    if lacks := why_no_bf16():
        pytest.skip(f"no BF16 on this processor: {lacks}")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("texts") / "texts.txt"
    data.write_text("".join(f"{text.strip()}\n" for text in SAMPLES))
    return data


@pytest.fixture(scope="module")
def judged(
    with_bf16: None, minilm: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ParityReport]:
    """A bundle whose stage cpu-bf16 has passed, and its report."""
    bundle = make_bundle(tmp_path_factory.mktemp("judged"), minilm, seed=0)
    return bundle, parity(bundle, texts, allow_incomplete=WITHOUT_LOW)


def ill_conditioned(bundle: Path, folder: Path) -> Path:
    """The bundle's model with a head that takes the difference of two large sums, which BF16 loses."""
    checkpoint = bundle.parent / "checkpoint"
    loaded = load_checkpoint(checkpoint, "classification")
    with torch.no_grad():
        weight = loaded.model.classifier.weight
        weight += 12 * (-1.0) ** torch.arange(weight.shape[1])
    save_checkpoint(folder / "checkpoint", loaded.model, loaded.config, Tokenizer.load(checkpoint, POSITIONS))
    return export_checkpoint(folder / "checkpoint", folder / "bundle", fp16=False).bundle


def test_the_stage_answers_in_bf16_and_passes(judged: tuple[Path, ParityReport]) -> None:
    bundle, report = judged
    stage = report.stage(STAGE)
    assert (report.verdict, report.verdict_on(stage)) == ("passed", "passed")
    assert stage.measures is not None
    # FP32 is off by 1e-6 or so here, and what BF16 rounds by 2**-9.
    assert 1e-4 < stage.measures.max_error < 0.25
    assert stage.consistency is not None
    assert stage.consistency.passed
    assert {gate.name for gate in report.gates if gate.stage == STAGE} >= {"max_error", "adversarial"}
    assert not any(gate.counts for gate in report.gates if gate.stage == STAGE)
    recorded = Bundle.open(bundle).manifest.stages["parity"].results["stages"]
    certified = json.loads((bundle / "certificate.json").read_text())["predicate"]["stages"]
    assert recorded[STAGE]["verdict"] == certified[STAGE]["verdict"] == "passed"


@pytest.mark.slow
def test_bf16_is_served_within_its_bound_and_a_version_keeps_its_precision(
    served: Served, judged: tuple[Path, ParityReport]
) -> None:
    bundle, _ = judged
    expected = answer_in_process(bundle, list(SAMPLES))[1]

    def ask() -> tuple[np.ndarray, str]:
        with Client(served.running.grpc) as client:
            told = client.settings("lowered", SAMPLES[0])["precision"]
            return client.classify("lowered", list(SAMPLES)).probabilities, told

    first = deploy(bundle, "lowered", served.repository, served.running.grpc)
    assert (first.precision, first.version) == ("bf16", 1)
    assert first.canary is not None
    assert 1e-5 < first.canary.golden_error < BOUND
    in_bf16, told = ask()
    assert told == "bf16"
    assert 1e-5 < np.abs(in_bf16 - expected).max() < BOUND
    assert deploy(bundle, "lowered", served.repository).new is False

    second = deploy(bundle, "lowered", served.repository, served.running.grpc, cpu_precision="fp32")
    assert (second.precision, second.version) == ("fp32", 2)
    assert "a CPU serves FP32: as --cpu-precision says" in second.notes
    in_fp32, told = ask()
    assert told == "fp32"
    np.testing.assert_allclose(in_fp32, expected, atol=1e-5)

    back = rollback("lowered", served.repository, served.running.grpc)
    assert (back.precision, back.version) == ("bf16", 1)
    np.testing.assert_allclose(ask()[0], in_bf16, atol=1e-6)
    assert rollback("lowered", served.repository, served.running.grpc, to=2).precision == "fp32"
    np.testing.assert_allclose(ask()[0], expected, atol=1e-5)

    listed = {one.version: one.precision for one in models(served.repository) if one.name == "lowered"}
    assert listed == {1: "bf16", 2: "fp32"}
    steps = [one for one in read_audit(served.repository) if one["model"] == "lowered"]
    assert [one["precision"] for one in steps if one["step"] == "staged"] == ["bf16", "fp32"]
    assert [one["precision"] for one in steps if one["step"] == "switched"] == ["bf16", "fp32"]


@pytest.mark.slow
def test_a_model_served_in_bf16_is_a_stage_held_to_bf16s_gates(
    served: Served, judged: tuple[Path, ParityReport], texts: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(judged[0], tmp_path / "bundle"))
    deploy(bundle, "lowered-stage", served.repository, served.running.grpc)
    stages = [TritonStage(served.running.grpc, "lowered-stage")]
    report = parity(bundle, texts, allow_incomplete=WITHOUT_LOW, extra_stages=stages)
    stage = report.stage("triton")
    assert (stage.serves, stage.details["precision"]) == (STAGE, "bf16")
    assert report.verdict_on(stage) == "passed"
    gates = {gate.name: gate for gate in report.gates if gate.stage == "triton"}
    assert gates["max_error"].limit == 0.25
    assert gates["max_probability_error"].limit == BOUND
    assert all(gate.counts for gate in gates.values())
    assert stage.consistency is not None
    assert "BF16" in stage.consistency.bound_reason


def test_golden_requests_of_a_bf16_version_have_its_bounds(
    judged: tuple[Path, ParityReport], tmp_path: Path
) -> None:
    for precision, bounds in (("auto", {0.125, 0.25}), ("fp32", {0.1, 0.0})):
        deploy(judged[0], "golden", tmp_path / precision, cpu_precision=precision)
        cases = read_json(version_folder(tmp_path / precision / "golden", 1) / GOLDEN)["cases"]
        found = {one["bound"] for case in cases for one in case["outputs"] if one["datatype"] == "FP32"}
        assert found == bounds


@pytest.mark.slow
def test_a_model_that_bf16_spoils_is_served_in_fp32_and_its_bundle_passes(
    served: Served, judged: tuple[Path, ParityReport], texts: Path, tmp_path: Path
) -> None:
    spoilt = ill_conditioned(judged[0], tmp_path)
    report = parity(spoilt, texts, allow_incomplete=WITHOUT_LOW)
    assert report.verdict == "passed", report.headline()
    assert report.verdict_on(report.stage(STAGE)) == "failed"
    assert "max_error" in {gate.name for gate in report.failed_optional}
    assert report.headline().endswith("cpu-bf16 failed: a CPU serves FP32")
    found = deploy(spoilt, "spoilt", served.repository, served.running.grpc)
    assert found.precision == "fp32"
    assert "a CPU serves FP32: parity's stage cpu-bf16 failed" in found.notes
    with Client(served.running.grpc) as client:
        answered = client.classify("spoilt", list(SAMPLES)).probabilities
    np.testing.assert_allclose(answered, answer_in_process(spoilt, list(SAMPLES))[1], atol=1e-4)


@pytest.mark.slow
def test_a_stage_that_is_required_decides_the_verdict(
    judged: tuple[Path, ParityReport], texts: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(judged[0], tmp_path / "bundle"))
    gates = tmp_path / "gates.toml"
    gates.write_text(f"[{STAGE}]\nmax_error = 1e-9\n")
    free = parity(bundle, texts, allow_incomplete=WITHOUT_LOW, gates=gates)
    assert (free.verdict, free.failed_gates) == ("passed", ())
    assert {gate.name for gate in free.failed_optional} >= {"max_error"}
    assert 'failures="0"' in (free.folder / "junit.xml").read_text()
    held = parity(bundle, texts, allow_incomplete=WITHOUT_LOW, gates=gates, require=[STAGE])
    assert held.verdict == "failed"
    assert f"{STAGE}.max_error" in held.summary()["failed_gates"]


@pytest.mark.slow
def test_without_openvino_the_stage_is_left_out_and_fp32_is_deployed(
    judged: tuple[Path, ParityReport], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(judged[0], tmp_path / "bundle"))
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))  # where no Triton was set up
    report = parity(bundle, texts, allow_incomplete=WITHOUT_LOW)
    assert report.verdict == "passed"
    assert report.stage(STAGE).reason == "Triton is not set up: a CPU serves FP32"
    found = deploy(bundle, "without", tmp_path / "repository")
    assert (found.precision, found.notes[-1]) == ("fp32", "a CPU serves FP32: Triton is not set up")
    monkeypatch.undo()
    found = deploy(bundle, "without", tmp_path / "repository")
    reason = "a CPU serves FP32: parity's stage cpu-bf16 was not run: Triton is not set up"
    assert (found.precision, found.notes[-1]) == ("fp32", reason)
    monkeypatch.setenv("BERTMP_HOME", str(tmp_path / "home"))
    assert parity(bundle, texts, allow_incomplete=WITHOUT_LOW, require=[STAGE]).verdict == "incomplete"


def test_a_bundle_whose_graph_changed_after_parity_is_not_served_in_bf16(
    judged: tuple[Path, ParityReport], other_bundle: Path, tmp_path: Path
) -> None:
    content = (other_bundle / names.FP32_GRAPH).read_bytes()
    changed = altered(judged[0], tmp_path / "changed", model__onnx=content)
    with pytest.raises(deployable.InputError, match=r"stale|changed"):
        deploy(changed, "changed", tmp_path / "repository")


SESSION = """
import sys
sys.path.append(sys.argv[1])
import cpu_session
setattr(cpu_session, sys.argv[3], eval(sys.argv[4]))
session, precision = cpu_session.open_session(sys.argv[2], 1, "bf16", print)
print(precision, session.get_providers()[0])
"""


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("_FEATURES", "frozenset(['another'])", "the processor has no BF16 (AVX512-BF16 or AMX)"),
        ("PROVIDER", "'AnotherProvider'", "has no OpenVINO"),
    ],
)
def test_a_worker_without_bf16_runs_fp32_and_says_why(
    judged: tuple[Path, ParityReport], name: str, value: str, reason: str
) -> None:
    package = Path(cpu_session.__file__).resolve().parent.parent
    graph = judged[0] / names.FP32_GRAPH
    command = [find_runtime().python, "-I", "-c", SESSION, package, graph, name, value]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    warned, opened = done.stdout.splitlines()
    assert "is run in FP32 and not in BF16" in warned
    assert reason in warned
    assert opened == "fp32 CPUExecutionProvider"


def test_the_servers_runtime_answers_in_fp32_as_ours_does(judged: tuple[Path, ParityReport]) -> None:
    """`onnxruntime-openvino` takes the place of `onnxruntime` for FP32 as well."""
    package = Path(cpu_session.__file__).resolve().parent.parent
    code = (
        "import sys, json; sys.path.append(sys.argv[1]); import cpu_session, numpy as np\n"
        "session, _ = cpu_session.open_session(sys.argv[2], 1, 'fp32', print)\n"
        "ids = np.arange(5, 29, dtype=np.int64).reshape(2, 12)\n"
        "feed = {'input_ids': ids, 'attention_mask': np.ones_like(ids), 'token_type_ids': 0 * ids}\n"
        "print(json.dumps(session.run(['logits'], feed)[0].tolist()))"
    )
    graph = judged[0] / names.FP32_GRAPH
    found = [
        json.loads(subprocess.check_output([str(python), "-c", code, str(package), str(graph)], text=True))
        for python in (find_runtime().python, sys.executable)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=DEFAULTS["onnx-fp32"].max_error)
