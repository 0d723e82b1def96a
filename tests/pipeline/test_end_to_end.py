"""The complete pipeline on real weights and questions: train, export, build, deploy, serve, infer, parity.

It trains for a few steps in place of the three epochs of `make quickstart`; everything else is the same.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import psutil
import pytest

from bertmp import build_engine, deploy, export_checkpoint, infer, parity, train
from bertmp.data.readers import read_examples
from bertmp.export.bundle import Bundle
from bertmp.serve.parity_stage import TritonStage
from bertmp.serve.serve_options import RunningServer, ServeOptions
from bertmp.serve.server import TritonServer

NAME = "questions"
TEXTS = 160


@dataclass(frozen=True)
class Pipeline:
    """The results of the stages."""

    bundle: Path
    repository: Path
    test: Path
    server: RunningServer


@pytest.fixture(scope="module")
def pipeline(minilm: Path, trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("pipeline")
    test = folder / "test.tsv"
    lines = (trec / "test.tsv").read_text(encoding="utf-8").splitlines()[:TEXTS]
    test.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    trained = train(
        "classification", trec / "train.tsv", minilm, folder / "run", steps=40, learning_rate=2e-4
    )
    bundle = export_checkpoint(trained.checkpoint, folder / "bundle").bundle
    build_engine(bundle, profiles=["1x1:8x32:32x64"])
    deploy(bundle, NAME, folder / "repository", allow_unverified=True)  # parity asks the server, too
    options = ServeOptions(folder / "repository", http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options) as server:
        yield Pipeline(bundle, folder / "repository", test, server)
    assert not psutil.pid_exists(server.pid)


def test_every_stage_answers_like_the_checkpoint(pipeline: Pipeline, tmp_path: Path) -> None:
    stages = [TritonStage(pipeline.server.grpc, NAME), TritonStage(pipeline.server.http, NAME, "http")]
    for stage in stages:
        report = parity(pipeline.bundle, pipeline.test, report=tmp_path, extra_stages=[stage])
        assert report.passed, report.failed_gates
        by_name = {stage["name"]: stage for stage in report.to_json()["stages"]}
        low = ["onnx-fp16", "onnx-fp16-emulated"]
        chain = ["torch-fp32", "torch-amp", "onnx-fp32", *low, "engine", "cpu-bf16", "triton"]
        assert list(by_name) == chain
        assert (
            by_name["onnx-fp16"]["measures"]["max_error"] < by_name[low[1]]["measures"]["max_error"] <= 0.05
        )
        assert by_name["torch-fp32"]["measures"]["accuracy"] > 0.5
        assert by_name["onnx-fp32"]["measures"]["max_error"] <= 5e-5
        assert 0 < by_name["onnx-fp16"]["measures"]["max_error"] <= 0.05
        assert by_name["triton"]["measures"]["max_error"] <= 5e-5
        assert by_name["triton"]["measures"]["max_probability_error"] <= 1e-5
        assert by_name["engine"]["verification"]["verified"] is True

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == list(by_name)
    cases = {suite.get("name"): [case.get("name") for case in suite.iter("testcase")] for suite in suites}
    assert cases["onnx-fp32"] == ["non_finite", "max_error", "consistent", "as_exported", "adversarial"]
    assert {"max_probability_error", "consistent"} <= set(cases["triton"])


def test_the_network_is_what_the_plan_says(pipeline: Pipeline) -> None:
    network = json.loads((pipeline.bundle / "engine" / "network.json").read_text())
    summary = network["verification"]["summary"]
    assert summary["NORMALIZATION"] == {"FLOAT": 13}
    assert summary["SOFTMAX"] == {"FLOAT": 6}
    assert set(summary["MATRIX_MULTIPLY"]) == {"HALF"}
    assert network["verification"]["unaccounted"] == []
    plan = json.loads((pipeline.bundle / "precision-plan.json").read_text())
    assert {node["name"] for node in network["verification"]["nodes"]} == {
        node["name"] for node in plan["nodes"]
    }


def test_both_protocols_give_the_label_of_the_graph(pipeline: Pipeline) -> None:
    texts = list(read_examples(pipeline.test).texts[:20])
    bundle = Bundle.open(pipeline.bundle)
    session = onnxruntime.InferenceSession(pipeline.bundle / "model.onnx", providers=["CPUExecutionProvider"])
    for protocol, url in (("grpc", pipeline.server.grpc), ("http", pipeline.server.http)):
        answers = infer(NAME, texts, protocol=protocol, url=url)
        assert [answer.text for answer in answers] == texts
        for answer, row in zip(answers, bundle.tokenizer.encode(texts), strict=True):
            feed: dict[str, Any] = {
                "input_ids": [row.input_ids],
                "attention_mask": [[1] * len(row)],
                "token_type_ids": [row.token_type_ids],
            }
            logits = session.run(["logits"], feed)[0][0]
            assert answer.label == bundle.labels[int(logits.argmax())]


def test_an_engine_of_tensorrt_rtx_is_not_deployed_as_a_plan(pipeline: Pipeline) -> None:
    record = Bundle.open(pipeline.bundle).stage("build-engine", "bertmp build-engine")
    encoder = pipeline.repository / f"{NAME}_encoder"
    assert 'platform: "tensorrt_plan"' in (encoder / "config.pbtxt").read_text()
    assert (encoder / "1" / "model.plan").is_file() == (record.results["builder"] == "tensorrt")
    assert (encoder / "1" / "model.onnx").read_bytes() == (pipeline.bundle / "model.onnx").read_bytes()


def test_the_tensorrt_parser_and_onnxruntime_load_both_graphs(pipeline: Pipeline) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for name in ("model.onnx", "model.fp16.onnx"):
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(pipeline.bundle / name))
        session = onnxruntime.InferenceSession(pipeline.bundle / name, providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_outputs()] == ["logits"]
