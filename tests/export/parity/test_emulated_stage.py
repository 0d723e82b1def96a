"""The low-precision graph with its 16-bit tensors rounded, and the checkpoint under autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import bertmp
from bertmp import export_checkpoint, parity
from bertmp.export.bundle import PLAN, Bundle, Manifest
from bertmp.export.graph.loading import load_graph
from bertmp.export.parity.bundle_stages import EmulatedStage, OnnxStage
from bertmp.export.parity.gates import override
from bertmp.export.parity.reading import read_inputs
from bertmp.export.parity.result import ParityReport
from bertmp.export.parity.stage import Feed, ParityInputs, StageOutput, answer_all
from bertmp.export.parity.stage_metrics import answers_of, probabilities_of
from bertmp.export.precision.apply import apply_plan
from bertmp.export.precision.plan import PrecisionPlan
from bertmp.model.checkpoint import load_checkpoint
from tests.export.conftest import Questions
from tests.export.inconsistent_graphs import Fault
from tests.export.overflowing import LAYER, large_residual, large_values
from tests.export.parity_bundles import Served, adopt

EMULATED = "onnx-fp16-emulated"


def outputs_of(stage: EmulatedStage | OnnxStage, inputs: ParityInputs) -> np.ndarray:
    found = stage.run(inputs, lambda texts: None)
    assert isinstance(found, StageOutput)
    return found.logits


def failed_stages(result: ParityReport) -> list[str]:
    return list(dict.fromkeys(gate.stage for gate in result.failed_gates))


# ---- every 16-bit tensor rounded


def test_the_emulated_stage_rounds_like_torchs_fp16_products(
    bundle: Path, labelled: Path, checkpoint: Path
) -> None:
    """FP16 autocast keeps other tensors in FP32: its mean error is of the same size, not the same."""
    inputs = read_inputs(Bundle.open(bundle), labelled).inputs
    exact = outputs_of(OnnxStage("onnx-fp32", bundle / "model.onnx", half=False), inputs)
    emulated = outputs_of(EmulatedStage(EMULATED, bundle / "model.fp16.onnx", "fp16"), inputs)
    model = load_checkpoint(checkpoint, "classification").model

    def products_in_fp16(feed: Feed) -> dict[str, np.ndarray]:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.float16):
            return {"logits": model(*map(torch.from_numpy, feed.values())).float().numpy()}

    real = answer_all(inputs, products_in_fp16, lambda texts: None).logits
    errors = [float(np.abs(found - exact).mean()) for found in (emulated, real)]
    assert 0.5 < errors[0] / errors[1] < 2, errors


def test_the_emulated_stage_is_compared_with_itself_and_counts(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    stage = result.stage(EMULATED)
    assert (stage.status, result.verdict_on(stage)) == ("run", "passed")
    assert stage.consistency is not None
    assert stage.consistency.passed
    assert {gate.name for gate in result.gates if gate.stage == EMULATED} == {
        "non_finite",
        "max_error",
        "accuracy_points",
        "unexplained_flips",
        "consistent",
        "adversarial",
    }
    assert "as on a GPU" in str(stage.details["arithmetic"])
    page = (result.folder / "report.html").read_text()
    assert EMULATED in page
    assert not parity(bundle, labelled, gates=override({EMULATED: {"max_error": 1e-9}}, "")).passed


def test_a_bf16_bundle_is_emulated_in_bf16(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", precision="bf16").bundle
    result = parity(bundle, labelled, gates=override({"onnx-bf16-emulated": {"accuracy_points": 5}}, ""))
    stage = result.stage("onnx-bf16-emulated")
    assert stage.status == "run"
    assert stage.measures is not None
    assert stage.measures.max_error > 0.001
    assert {gate.limit for gate in result.gates if (gate.stage, gate.name) == (stage.name, "max_error")} == {
        0.25
    }


def test_a_bundle_without_a_low_graph_says_so(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle", fp16=False).bundle
    result = parity(bundle, labelled)
    assert result.verdict == "passed", result.headline()
    assert (result.stage(EMULATED).status, result.stage(EMULATED).reason) == (
        "not run",
        "the bundle has no low-precision graph",
    )
    assert parity(bundle, labelled, require=[EMULATED]).verdict == "incomplete"


def test_a_served_model_is_never_said_to_serve_the_emulation(bundle: Path, labelled: Path) -> None:
    """Its answers are those of the emulation to the last bit."""
    low, inputs = bundle / "model.fp16.onnx", read_inputs(Bundle.open(bundle), labelled).inputs
    emulated = EmulatedStage(EMULATED, low, "fp16").run(inputs, lambda texts: None)
    assert isinstance(emulated, StageOutput)
    answers = {
        "probabilities": probabilities_of(emulated).astype(np.float32),
        "answers": answers_of(emulated),
    }
    served = Served(low, lambda answer: replace(answer, logits=emulated.logits, **answers))
    result = parity(bundle, labelled, extra_stages=[served])
    assert result.stage("triton").serves in ("onnx-fp32", "onnx-fp16")


# ---- overflow


@pytest.fixture
def overflowing(questions: Questions, trec: Path, tmp_path: Path) -> Callable[[Fault], ParityReport]:
    """Parity of a bundle that was sound until one block of its FP32 graph was rescaled.

    The graph is converted by its old plan, and the manifest has the new files.
    """
    bundle = export_checkpoint(questions.checkpoint, tmp_path / "bundle").bundle
    data = tmp_path / "test.tsv"
    data.write_text("".join(f"{line}\n" for line in (trec / "test.tsv").read_text().splitlines()[:60]))

    def run(rescale: Fault) -> ParityReport:
        assert parity(bundle, data).verdict == "passed"
        exact = load_graph(bundle / "model.onnx")
        rescale(exact)
        onnx.save(exact, bundle / "model.onnx")
        plan = PrecisionPlan.load(bundle / PLAN)
        onnx.save(apply_plan(exact, plan), bundle / "model.fp16.onnx")
        adopt(bundle)
        return parity(bundle, data)

    return run


@pytest.mark.slow
def test_an_overflow_that_the_provider_hides_is_found_and_its_block_named(
    overflowing: Callable[[Fault], ParityReport],
) -> None:
    """The sum before a LayerNorm, which undoes the factor, reaches 100,000: the provider keeps it in FP32."""
    result = overflowing(lambda graph: large_residual(graph, 1e5, 10.0))
    assert result.verdict == "failed"
    off = {gate.stage for gate in result.failed_gates if gate.name != "as_exported"}
    assert off == {EMULATED}  # the fault is in the FP32 graph, too: it is another than the checkpoint's
    assert_overflow_is_named(result, EMULATED)


@pytest.mark.slow
def test_overflowing_values_are_found_and_their_block_named(
    overflowing: Callable[[Fault], ParityReport],
) -> None:
    """The provider rounds them too, before it transposes them: the stage before the emulation fails first."""
    result = overflowing(lambda graph: large_values(graph, 2.0**16))
    assert result.verdict == "failed"
    off = [gate.stage for gate in result.failed_gates if gate.name != "as_exported"]
    assert off[0] in ("onnx-fp16", EMULATED)
    assert EMULATED in off
    assert_overflow_is_named(result, off[0])


def assert_overflow_is_named(result: ParityReport, stage: str) -> None:
    assert (EMULATED, "non_finite") in {(gate.stage, gate.name) for gate in result.failed_gates}
    found = result.stage(stage).localisation
    assert found is not None
    assert found.block == f"bert.encoder.layer.{LAYER}"
    page = " ".join((result.folder / "report.html").read_text().split())
    assert f"Where does {stage} go wrong?" in page


# ---- torch under autocast


def test_torch_under_autocast_is_measured_and_not_judged(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled)
    stage = result.stage("torch-amp")
    assert (stage.status, result.verdict_on(stage)) == ("run", "not judged")
    assert stage.measures is not None
    exact = result.stage("onnx-fp32").measures
    assert exact is not None
    assert 100 * exact.max_error < stage.measures.max_error < 1
    assert "matrix products, the rest in FP32" in stage.details["arithmetic"]
    assert stage.consistency is not None
    assert "torch-amp" not in {gate.stage for gate in result.gates}
    figures = bertmp.compare(bundle, bundle).figures
    [change] = [one for one in figures if (one.stage, one.name) == ("torch-amp", "verdict")]
    assert (change.before, change.after, change.worse) == ("not judged", "not judged", False)


def test_limits_of_torch_under_autocast_are_the_users(bundle: Path, labelled: Path) -> None:
    result = parity(bundle, labelled, gates=override({"torch-amp": {"max_error": 1e-6}}, ""))
    assert failed_stages(result) == ["torch-amp"]
    assert result.verdict_on(result.stage("torch-amp")) == "failed"


def test_torch_under_autocast_is_not_waited_for_unless_required(
    bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    manifest = Manifest.load(bundle)
    moved = replace(manifest.stages["export"], settings={"checkpoint": str(tmp_path / "gone")})
    manifest.with_stage("export", moved).save(bundle)
    result = parity(bundle, labelled, allow_incomplete=["torch-fp32"])
    assert result.verdict == "passed", result.headline()
    assert "not on this machine" in result.stage("torch-amp").reason
    required = parity(bundle, labelled, allow_incomplete=["torch-fp32"], require=["torch-amp"])
    assert required.verdict == "incomplete"
