"""A served model over the wire: its answers, and the commands that ask it."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bertmp import bench, infer, parity
from bertmp.core.errors import InputError
from bertmp.core.io import write_text
from bertmp.data.readers import read_examples
from bertmp.export.bundle import Bundle
from bertmp.export.parity.stage import ParityInputs, Skipped, StageOutput
from bertmp.serve.client import Client
from bertmp.serve.model_config import MAX_BATCH
from bertmp.serve.model_signature import read_model_config, render
from bertmp.serve.parity_stage import TritonStage
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.served_consistency import served_graph
from bertmp.serve.server import TritonServer
from tests.conftest import RunBertmp
from tests.serve.bundles import LABELS, SAMPLES, answer_in_process, deploy, make_bundle
from tests.serve.conftest import Served

PROTOCOLS = ("grpc", "http")


@pytest.fixture(scope="module")
def texts(trec: Path) -> list[str]:
    """More than two requests' worth, with a text too long for the model and one in other scripts."""
    questions = list(read_examples(trec / "test.tsv").texts[: 2 * MAX_BATCH + 7])
    questions[3] = "why " * 500
    questions[4] = "Où est la gare ? 駅はどこですか 🚉"
    return questions


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_classify_equals_the_graph(served: Served, texts: list[str], protocol: str) -> None:
    labels, probabilities, _ = answer_in_process(served.bundle, texts)
    with Client(served.url(protocol), protocol) as client:
        found = client.classify("trec", texts)
    assert found.labels == labels
    assert len(set(labels)) > 1, "the texts must not all have one label"
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-5)
    encoded = Bundle.open(served.bundle).tokenizer.encode(texts)
    assert found.tokens.tolist() == [len(row) for row in encoded]
    assert found.truncated.tolist() == [row.truncated for row in encoded]
    assert found.truncated.sum() == 1
    assert set(found.versions) == {1}


@pytest.mark.parametrize("command", ["infer", "bench"])
def test_a_file_that_is_read_as_conll_is_said_to_be(
    served: Served, tmp_path: Path, run_bertmp: RunBertmp, command: str
) -> None:
    data = tmp_path / "words.txt"
    data.write_text("Anna\tB-PER\nsings\tO\n\nin\tO\nLima\tB-LOC\n")
    extra = ["--concurrency", "1", "--seconds", "0.5"] if command == "bench" else []
    done = run_bertmp(command, "trec", "--data", data, "--url", served.url("grpc"), "--json", *extra)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == f"{data}: read as CoNLL, 2 sentences"
    json.loads(done.stdout)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_parity_stage_equals_the_graph(served: Served, texts: list[str], protocol: Any) -> None:
    labels, probabilities, logits = answer_in_process(served.bundle, texts)
    inputs = ParityInputs(texts, None, None, Bundle.open(served.bundle).tokenizer.encode(texts))
    done: list[int] = []
    output = TritonStage(served.url(protocol), "trec", protocol).run(inputs, done.append)
    assert isinstance(output, StageOutput)
    assert output.probabilities is not None
    assert output.answers is not None
    np.testing.assert_allclose(output.logits, logits, atol=1e-5)
    np.testing.assert_allclose(output.probabilities, probabilities, atol=1e-5)
    assert [LABELS[index] for index in output.answers] == labels
    assert sum(done) == len(texts)
    assert output.details["versions"] == [1]


@pytest.mark.parametrize(
    ("config", "serves"),
    [
        ({"platform": "tensorrt_plan"}, "engine"),
        ({"platform": "onnxruntime_onnx", "default_model_filename": "model.fp16.onnx"}, "onnx-fp16"),
        ({"platform": "onnxruntime_onnx", "default_model_filename": "model.bf16.onnx"}, "onnx-bf16"),
        ({"platform": "onnxruntime_onnx", "default_model_filename": ""}, None),
    ],
)
def test_served_graph_is_told_from_the_configuration(config: dict[str, str], serves: str | None) -> None:
    assert served_graph(config).get("serves") == serves


@pytest.mark.slow
def test_parity_of_a_repository_that_serves_the_fp16_graph(
    triton: None, minilm: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path, minilm, seed=2, fp16=True)
    repository = tmp_path / "repository"
    deploy(bundle, "trec", repository)
    encoder = repository / "trec_encoder"
    shutil.copyfile(bundle / "model.fp16.onnx", encoder / "1" / "model.fp16.onnx")
    config = read_model_config(encoder / "configs" / "cpu.pbtxt")
    config.default_model_filename = "model.fp16.onnx"
    write_text(encoder / "configs" / "cpu.pbtxt", render(config))
    text = repository / "trec" / "configs" / "cpu.pbtxt"
    fp32 = text.read_text()
    text.write_text(fp32.replace("model.onnx", "model.fp16.onnx"))
    assert text.read_text() != fp32
    data = tmp_path / "data.tsv"
    data.write_text("".join(f"{LABELS[n % 6]}\t{text}\n" for n, text in enumerate(SAMPLES)), encoding="utf-8")
    options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options) as running:
        result = parity(bundle, data, extra_stages=[TritonStage(running.grpc, "trec")])
    stage = result.stage("triton")
    assert (stage.status, stage.serves) == ("run", "onnx-fp16")
    assert stage.details["precision"] == "fp16"
    assert stage.consistency is not None
    assert stage.consistency.passed, stage.consistency.sentence()
    assert {result.shape for result in stage.consistency.results} >= {"32x16", "5x64", "32 texts"}
    assert not [gate for gate in result.failed_gates if gate.stage == "triton"]
    assert result.adversarial is not None
    [asked] = [one for one in result.adversarial.stages if one.stage == "triton"]
    assert asked.refuses_empty is True
    assert 30 < asked.asked < result.adversarial.inputs  # the texts alone
    assert "adversarial" in {gate.name for gate in result.gates if gate.stage == "triton"}


def test_a_text_model_of_another_graph_than_its_encoders_is_no_stage(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = ParityInputs(["a"], None, None, Bundle.open(served.bundle).tokenizer.encode(["a"]))
    told = Client.config

    def config(client: Client, model: str) -> dict[str, Any]:
        found = told(client, model)
        return {**found, "default_model_filename": "other.onnx"} if model == "trec_encoder" else found

    monkeypatch.setattr(Client, "config", config)
    with pytest.raises(InputError, match=r"the text model runs model\.onnx and its encoder other\.onnx"):
        TritonStage(served.running.grpc, "trec").run(inputs, lambda n: None)


def test_a_text_model_whose_graph_does_not_run_is_not_ready(
    triton: None, repository: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(repository, tmp_path / "broken"))
    graph = onnx.load(broken / "trec_encoder" / "1" / "model.onnx")
    (output,) = graph.graph.output
    graph.graph.node.add(op_type="Identity", input=[output.name], output=["other"])
    output.name = "other"
    onnx.save(graph, broken / "trec_encoder" / "1" / "other.onnx")
    config = broken / "trec" / "configs" / "cpu.pbtxt"
    config.write_text(config.read_text().replace("model.onnx", "other.onnx"))
    with (
        pytest.raises(InputError, match=r"model 'trec' version 1 does not load: .*logits"),
        TritonServer(ServeOptions(broken, http_port=0, grpc_port=0, metrics_port=0)),
    ):
        pass


def test_a_text_that_is_not_empty_counts_as_answered(served: Served) -> None:
    stage = TritonStage(served.running.grpc, "trec")
    assert stage.answered_empty(["", "Who ?", " \t"]) == ["Who ?"]


def test_parity_stage_with_pairs_is_skipped(served: Served) -> None:
    inputs = ParityInputs(["a"], ["b"], None, [])
    assert isinstance(TritonStage(served.running.grpc, "trec").run(inputs, lambda n: None), Skipped)


def test_concurrent_requests_batched_together_get_their_own_rows(served: Served) -> None:
    """Many clients at once: what is batched together must come apart right."""
    words = ["red", "blue", "green", "one", "two", "three", "who", "what", "where", "why"]
    texts = [f"{first} {second}" for first in words for second in words]
    expected = answer_in_process(served.bundle, texts)[1]
    found: dict[int, np.ndarray] = {}

    def ask(rows: list[int]) -> None:
        with Client(served.running.grpc) as client:
            for row in rows:
                found[row] = client.classify("trec", [texts[row]]).probabilities[0]

    threads = [threading.Thread(target=ask, args=([*range(start, len(texts), 8)],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.stack([found[row] for row in range(len(texts))]), expected, atol=1e-5)


def test_plain_http_client_is_answered(served: Served) -> None:
    """The Open Inference Protocol in plain JSON, as curl would send it."""
    connection = http.client.HTTPConnection(served.running.http, timeout=60)
    body = {"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["Who ?"]}]}
    connection.request("POST", "/v2/models/trec/infer", json.dumps(body))
    response = connection.getresponse()
    outputs = {entry["name"]: entry["data"] for entry in json.loads(response.read())["outputs"]}
    assert outputs["LABEL"][0] in LABELS
    assert sum(outputs["PROBABILITIES"]) == pytest.approx(1.0, abs=1e-5)
    body["inputs"][0]["data"] = [""]
    connection.request("POST", "/v2/models/trec/infer", json.dumps(body))
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())) == (400, {"error": "the text is empty"})
    connection.close()


def test_client_labels_are_in_the_order_of_the_logits(served: Served) -> None:
    with Client(served.running.http, "http") as client:
        assert client.labels("trec", "Who ?") == list(LABELS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_client_errors_name_the_address(served: Served, protocol: str) -> None:
    with pytest.raises(InputError, match=f"no model 'nope' .*{served.url(protocol)}"):
        infer("nope", ["a"], protocol=protocol, url=served.url(protocol))
    with pytest.raises(InputError, match=r"no Triton server answers .*127\.0\.0\.1:9"):
        infer("trec", ["a"], protocol=protocol, url="127.0.0.1:9")
    wrong = "http" if protocol == "grpc" else "grpc"
    with pytest.raises(InputError, match="not an address"):
        infer("trec", ["a"], protocol=protocol, url=f"{wrong}://127.0.0.1")
    with pytest.raises(InputError, match="no Triton server answers"):
        infer("trec", ["a"], protocol=protocol, url=served.url(wrong))


def test_infer_command_prints_labels_and_warns_of_truncation(
    served: Served, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("Where is Rome ?\n" + "long " * 200 + "\n")
    options = ("--data", file, "--url", f"http://{served.running.http}", "--protocol", "http")
    done = run_bertmp("infer", "trec", "Who wrote Hamlet ?", *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected, _, _ = answer_in_process(served.bundle, [answer["text"] for answer in found])
    assert [answer["label"] for answer in found] == expected
    assert [answer["version"] for answer in found] == [1, 1, 1]
    assert [answer["truncated"] for answer in found] == [False, False, True]
    done = run_bertmp("infer", "trec", *options)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [label for label, _ in lines] == expected[1:]
    assert "text 2 was too long" in done.stderr
    done = run_bertmp("infer", "trec", "--url", served.running.grpc)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no texts" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bench_measures_rates_and_latencies(served: Served, texts: list[str], protocol: str) -> None:
    lines: list[str] = []
    found = bench("trec", texts, (1, 3), 0.5, protocol, served.url(protocol), progress=lines.append)
    assert lines == ["concurrency 1", "concurrency 3"]
    assert [level.concurrency for level in found.levels] == [1, 3]
    assert found.failures == 0
    for level in found.levels:
        assert level.requests > 0
        assert level.requests_per_second == level.texts_per_second == level.requests / 0.5
        assert level.tokens_per_second > 3 * level.texts_per_second
        assert level.p50_ms is not None
        assert 0 < level.p50_ms <= (level.p90_ms or 0) <= (level.p99_ms or 0)


def test_bench_command_with_failed_requests_exits_1(
    served: Served, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("fine\n" + "a" * 1_000_001 + "\n")
    options = ("--seconds", "0.5", "--concurrency", "1", "--url", served.running.grpc, "--json")
    done = run_bertmp("bench", "trec", "--data", file, *options)
    assert done.returncode == 1, done.stderr
    (level,) = json.loads(done.stdout)["levels"]
    assert level["failures"] > 0
    assert level["requests"] > 0
    assert "too large" in next(iter(level["errors"]))


def test_infer_reads_the_named_column(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "questions.csv"
    file.write_text("id,question\n1,Where is Rome ?\n2,Who wrote Hamlet ?\n")
    found = infer("trec", "Who ?", file, url=served.running.grpc, text_column="question")
    assert [answer.text for answer in found] == ["Who ?", "Where is Rome ?", "Who wrote Hamlet ?"]
