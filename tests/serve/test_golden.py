"""Golden requests: what is recorded, and which answers agree with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertmp.core.errors import InputError
from bertmp.serve.golden import (
    GOLDEN,
    GoldenCase,
    Tensor,
    any_request,
    leads_clearly,
    read_golden,
    write_golden,
)
from bertmp.serve.http_request import Endpoint, Reply
from bertmp.serve.serve_options import ServeOptions
from bertmp.serve.watchdog import Watchdog
from tests.export.prediction.heads import Heads
from tests.serve.bundles import answer_in_process, deploy
from tests.serve.test_watchdog import FREE

QUESTION = Tensor("TEXT", "BYTES", (1, 1), ("Who ?",))


def reply(*outputs: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, json.dumps({"outputs": outputs}).encode())


def output(name: str, datatype: str, *data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [1, len(data)], "data": list(data)}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ((output("LOGITS", "FP32", 4.0, -2.0), output("LABEL", "BYTES", "yes")), ""),
        ((output("LOGITS", "FP32", 4.15, -1.9), output("LABEL", "BYTES", "yes")), ""),
        ((output("LOGITS", "FP32", 4.5, -2.0), output("LABEL", "BYTES", "yes")), "LOGITS is 4.5, not 4"),
        ((output("LOGITS", "FP32", 4.0, -2.0), output("LABEL", "BYTES", "no")), "LABEL is 'no', not 'yes'"),
        ((output("LOGITS", "FP32", 4.0, math.nan), output("LABEL", "BYTES", "yes")), "not a finite number"),
        ((output("LOGITS", "FP32", 4.0, math.inf), output("LABEL", "BYTES", "yes")), "not a finite number"),
        ((output("LOGITS", "FP32", 4.0), output("LABEL", "BYTES", "yes")), "LOGITS is FP32 [1, 1], not FP32"),
        ((output("LOGITS", "FP32", 4.0, -2.0),), "the answer lacks LABEL"),
        ((), "the answer holds no tensors"),
    ],
)
def test_answer_is_compared_within_its_bounds(given: tuple[dict[str, Any], ...], fault: str) -> None:
    logits = Tensor("LOGITS", "FP32", (1, 2), (4.0, -2.0))
    case = GoldenCase("m", (QUESTION,), (logits, Tensor("LABEL", "BYTES", (1, 1), ("yes",))))
    found = case.fault(reply(*given))
    assert (fault in found) if fault else (found == "")


def test_refused_request_is_a_fault_in_the_servers_words() -> None:
    case = GoldenCase("m", (QUESTION,))
    assert (
        case.fault(Reply(500, b'{"error": "Stub process is not healthy."}')) == "Stub process is not healthy."
    )
    assert case.fault(Reply(None, fault="no answer within 5 s")) == "no answer within 5 s"
    assert case.fault(Reply(200, b"no JSON")) == "the answer holds no tensors"


def test_first_answer_keeps_what_no_rounding_changes() -> None:
    clear, close = output("PROBABILITIES", "FP32", 0.9, 0.1), output("PROBABILITIES", "FP32", 0.55, 0.45)
    label, entities = output("LABEL", "BYTES", "yes"), output("ENTITIES", "BYTES", "[]")
    case = GoldenCase("m", (QUESTION,))
    assert [one.name for one in case.expecting(reply(clear, label)).outputs] == ["PROBABILITIES", "LABEL"]
    assert [one.name for one in case.expecting(reply(close, label)).outputs] == ["PROBABILITIES"]
    assert case.expecting(reply(entities)).outputs == ()
    assert leads_clearly([0.05, 0.9, 0.05])
    assert not leads_clearly([0.6, 0.4])


def test_requests_to_models_of_ours_are_known_and_to_others_not() -> None:
    text = {"name": "m", "input": [{"name": "TEXT"}], "output": [{"name": "LABEL", "dims": ["1"]}]}
    assert any_request(text) is not None
    ids = [{"name": name} for name in ("input_ids", "attention_mask", "token_type_ids")]
    encoder = {"name": "m_encoder", "input": ids, "output": [{"name": "logits", "dims": ["6"]}]}
    assert any_request(encoder) is not None
    words = {**encoder, "output": [{"name": "prediction_logits", "dims": ["-1", "30522"]}]}
    assert any_request(words) is None
    assert any_request({**text, "input": [{"name": "IMAGE"}]}) is None


def test_golden_file_is_read_as_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "3"
    folder.mkdir(parents=True)
    cases = [
        GoldenCase("m", (QUESTION,), (Tensor("VALUE", "FP32", (1, 1), (0.5,), 0.1),), ("VALUE",)),
        GoldenCase("m_encoder", (Tensor("input_ids", "INT64", (1, 2), (1, 2)),)),
    ]
    write_golden(folder, cases)
    assert read_golden(tmp_path, "m", 3) == cases[0]
    assert read_golden(tmp_path, "m_encoder", 3) == cases[1]
    assert read_golden(tmp_path, "m", 2) is None
    assert read_golden(tmp_path, "other", 3) is None
    (folder / GOLDEN).write_text('{"format": 1, "cases": [{"model": "m"}]}')
    with pytest.raises(InputError, match="not a file of golden requests"):
        read_golden(tmp_path, "m", 3)


def test_recorded_answers_are_those_of_the_graph(repository: Path, bundle: Path) -> None:
    text, encoder = (read_golden(repository, name, 1) for name in ("trec", "trec_encoder"))
    assert text is not None
    assert encoder is not None
    question = str(text.inputs[0].data[0])
    _, probabilities, logits = answer_in_process(bundle, [question])
    assert np.allclose(text.outputs[0].data, probabilities[0], atol=1e-6)
    assert np.allclose(encoder.outputs[0].data, logits[0], atol=1e-6)


HEADS = {
    "classification": "recorded",
    "next-sentence": "recorded",
    "multi-label-classification": "recorded",
    "regression": "recorded",
    "token-classification": "finite",
    "encoder": "recorded",
    "masked-lm": "finite",
    "pretraining": "finite",
}


@pytest.mark.slow
def test_every_head_answers_its_golden_request(triton: None, minilm: Path, tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads", minilm)
    for task in HEADS:
        deploy(heads.bundle(task, precision="fp32", pairs=False), task, tmp_path / "repository")
    with Watchdog(ServeOptions(tmp_path / "repository", **FREE)) as watchdog:
        body = Endpoint(watchdog.running.health).get("/ready").json()
    assert body["ready"], body
    golden = {name: one["golden"] for name, one in body["models"].items()}
    assert {task: golden[task] for task in HEADS} == HEADS
    unlike = {task for task in HEADS if golden[f"{task}_encoder"] != "recorded"}
    assert unlike == {"masked-lm"}  # 30,522 logits per token are not asked for every two seconds
