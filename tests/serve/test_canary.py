"""A new version is tried under a stand-in's name, and what a crash leaves is put right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import bertmp
from bertmp import models, parity, rollback
from bertmp.core.errors import GateFailed, InputError
from bertmp.export import bundle as names
from bertmp.export.bundle import Bundle
from bertmp.export.consistency.check import Consistency
from bertmp.export.parity.golden_examples import GOLDEN_EXAMPLES, read_golden_examples
from bertmp.serve import deploy as deploying
from bertmp.serve import rollout
from bertmp.serve.audit import read_audit
from bertmp.serve.canary import CanaryResult, answer_difference, may_be_a_tie
from bertmp.serve.client import Client
from bertmp.serve.config_check import check_configs
from bertmp.serve.repository import CANARY, ModelFolders, numbered, servable
from bertmp.serve.version_log import VersionLog
from tests.export.inconsistent_graphs import roll_rows
from tests.serve.bundles import SAMPLES, altered, answer_in_process
from tests.serve.bundles import deploy as deploy_unverified
from tests.serve.conftest import Served

deploy = partial(bertmp.deploy, cpu_precision="fp32")
"""The answers are compared closely; those in BF16 are in test_cpu_bf16.py."""


@pytest.fixture(scope="module")
def verified(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose parity has passed."""
    folder = tmp_path_factory.mktemp("verified")
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    data = folder / "texts.txt"
    data.write_text("".join(f"{text.strip()}\n" for text in SAMPLES))
    found = parity(copy, data, allow_incomplete=["onnx-fp16", "onnx-fp16-emulated"])
    assert found.verdict == "passed", found.headline()
    return copy


def test_parity_records_examples_with_the_fp32_graphs_answers(verified: Path) -> None:
    examples = read_golden_examples(Bundle.open(verified))
    assert {example.text for example in examples} <= {text.strip() for text in SAMPLES}
    labels, probabilities, _ = answer_in_process(verified, [example.text for example in examples])
    assert [example.answer["label"] for example in examples] == labels
    assert [example.answer["probability"] for example in examples] == pytest.approx(
        probabilities.max(axis=1).tolist(), abs=1e-5
    )
    assert GOLDEN_EXAMPLES in Bundle.open(verified).manifest.stages["parity"].outputs


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_version_is_tried_over_both_protocols(served: Served, verified: Path, protocol: str) -> None:
    name = f"tried-{protocol}"
    found = deploy(verified, name, served.repository, served.url(protocol)).canary
    assert found is not None
    assert sorted(found.protocols) == ["grpc", "http"]
    assert found.golden == len(read_golden_examples(Bundle.open(verified)))
    assert found.golden_error < 1e-4
    assert found.requests >= 4
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.notes == ()
    with Client(served.running.grpc) as client:
        assert client.describe(name).task == "classification"
        with pytest.raises(InputError, match=f"{name}{CANARY}"):
            client.ask(f"{name}{CANARY}", SAMPLES[:1])
    assert not list(served.repository.glob(f"{name}{CANARY}*"))
    entries = [one for one in read_audit(served.repository) if one["model"] == name]
    assert [entry["step"] for entry in entries] == ["staged", "canary", "promoted"]
    assert entries[1]["golden_error"] == found.golden_error


def test_a_version_that_answers_otherwise_than_recorded_is_refused(
    served: Served, verified: Path, tmp_path: Path
) -> None:
    """The graph is another than parity saw, and the manifest says that it is not."""
    deploy(verified, "otherwise", served.repository, served.running.grpc)
    other = Path(shutil.copytree(verified, tmp_path / "other"))
    model = onnx.load(other / names.FP32_GRAPH)
    (bias,) = (one for one in model.graph.initializer if one.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[::-1].copy(), bias.name))
    onnx.save(model, other / names.FP32_GRAPH)
    manifest = json.loads((other / "manifest.json").read_text())
    text = json.dumps(manifest).replace(
        Bundle(verified).sha256(names.FP32_GRAPH), Bundle(other).sha256(names.FP32_GRAPH)
    )
    (other / "manifest.json").write_text(text)
    with pytest.raises(GateFailed, match="another answer than parity recorded"):
        deploy(other, "otherwise", served.repository, served.running.grpc)
    assert numbered(served.repository / "otherwise") == [1]
    last = list(read_audit(served.repository))[-1]
    assert (last["step"], last["outcome"], last["live"]) == ("canary", "refused", 1)


def test_a_version_that_was_written_without_a_server_is_tried_before_it_answers_there(
    served: Served, bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    deploy_unverified(bundle, "untried", served.repository, served.running.grpc)
    model = onnx.load(other_bundle / names.FP32_GRAPH)
    roll_rows(model)
    mixed = altered(other_bundle, tmp_path / "mixed", model__onnx=model.SerializeToString())
    assert deploy_unverified(mixed, "untried", served.repository).version == 2
    with pytest.raises(GateFailed, match="version 2 of 'untried' is refused: it contradicts itself"):
        deploy_unverified(mixed, "untried", served.repository, served.running.grpc)
    with Client(served.running.grpc) as client:
        assert {one.version for one in client.ask("untried", SAMPLES)} == {1}
    assert not list(served.repository.glob(f"untried{CANARY}*"))
    result = deploy_unverified(other_bundle, "untried", served.repository)
    again = deploy_unverified(other_bundle, "untried", served.repository, served.running.grpc)
    assert (again.version, again.new) == (result.version, False)
    assert again.canary is not None
    with Client(served.running.grpc) as client:
        assert {one.version for one in client.ask("untried", SAMPLES)} == {result.version}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('backend: "python"', 'backend: "tokenizer_of_ours"'), ""),
        (('backend: "python"', ""), "neither a platform nor a backend is named"),
        (('name: "TEXT"', 'name: "TEXTS"'), "the input TEXT is missing"),
        (('name: "LABEL"', 'name: "PROBABILITIES"'), "two tensors have the same name"),
    ],
)
def test_what_triton_demands_of_a_configuration(
    bundle: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    deploy_unverified(bundle, "m", tmp_path)
    config = tmp_path / "m" / "configs" / "cpu.pbtxt"
    assert change[0] in config.read_text()
    config.write_text(config.read_text().replace(*change))
    if message:
        with pytest.raises(InputError, match=message):
            check_configs(ModelFolders(tmp_path, "m"), 1)
    else:
        check_configs(ModelFolders(tmp_path, "m"), 1)


def test_a_tuned_configuration_that_triton_would_refuse_is_refused_before_a_server_sees_it(
    served: Served, verified: Path, other_bundle: Path
) -> None:
    deploy(verified, "tuned", served.repository, served.running.grpc)
    config = served.repository / "tuned" / "configs" / "cpu.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 32", "max_batch_size: 0"))
    with pytest.raises(InputError, match="max_batch_size is 0"):
        deploy_unverified(other_bundle, "tuned", served.repository, served.running.grpc)
    assert numbered(served.repository / "tuned") == [1]
    assert not list(served.repository.glob(f"tuned{CANARY}*"))


@pytest.mark.parametrize("name", [f"x{CANARY}", f"x{CANARY}_encoder"])
def test_a_stand_ins_name_is_no_models_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be a model's name"):
        ModelFolders(tmp_path, name)


Step = tuple[object, str]
CRASHES: dict[str, Step] = {
    "before the version is whole": (deploying, "write_golden"),
    "with a whole stand-in": (deploying, "check_configs"),
    "while it is tried": (rollout, "loaded"),
    "before it is moved": (deploying, "take_over"),
    "after its encoder moved": (deploying, "_crash_after_encoder"),
    "before it is recorded": (VersionLog, "save"),
    "before the server is asked": (rollout, "promote"),
}


@pytest.mark.parametrize("step", CRASHES)
def test_a_crash_at_any_step_leaves_a_repository_that_can_be_served_and_deployed_to(
    bundle: Path, other_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    deploy_unverified(bundle, "m", tmp_path)
    where, name = CRASHES[step]
    child = os.fork()
    if child == 0:  # dies as a killed process does: nothing is tidied up
        try:
            _crash_in(where, name, monkeypatch)
            deploy_unverified(other_bundle, "m", tmp_path, server="grpc://nobody")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9, "it did not get as far as that step"
    assert servable(tmp_path) == ["m", "m_encoder"]
    live = ModelFolders(tmp_path, "m").live()
    assert live == (2 if step in ("before it is recorded", "before the server is asked") else 1)
    assert {record.version for record in models(tmp_path)} >= {1}
    result = deploy_unverified(other_bundle, "m", tmp_path)
    assert result.version in (2, 3)
    folders = ModelFolders(tmp_path, "m")
    assert numbered(folders.text) == numbered(folders.encoder)
    assert not list(tmp_path.glob(f"*{CANARY}*"))
    assert not list(tmp_path.rglob("*.part"))
    (now,) = (record for record in models(tmp_path) if record.state == "live")
    assert now.version == result.version
    assert rollback("m", tmp_path, to=1).version == 1


def _crash_in(where: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the process die when it reaches a function; the server is left out."""

    def die(*_: object, **__: object) -> None:
        os._exit(9)

    monkeypatch.setattr(deploying, "connection", lambda *_: _NoServer())
    monkeypatch.setattr(rollout, "loaded", lambda *_: _NoServer())
    nothing = CanaryResult(("grpc",), Consistency((), ""), 0, 0.0, 1, 1.0, 1.0)
    monkeypatch.setattr(deploying, "try_version", lambda *_: nothing)
    monkeypatch.setattr(deploying, "other_protocol", lambda *_: None)
    if name != "_crash_after_encoder":
        monkeypatch.setattr(where, name, die)
        return
    replaced: Callable[..., None] = os.replace

    def replace_encoder(source: Path, target: Path) -> None:
        replaced(source, target)
        if f"m{CANARY}_encoder" in str(source):
            os._exit(9)

    monkeypatch.setattr(os, "replace", replace_encoder)


class _NoServer:
    """In place of a connection: the steps that need a server are not what these tests are about."""

    address = "nobody"
    protocol = "grpc"

    def __enter__(self) -> _NoServer:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("expected", "given", "difference"),
    [
        ({"label": "A", "probability": 0.5}, {"label": "A", "probability": 0.5005, "more": 1}, 0.0005),
        ({"label": "A"}, {"label": "B"}, None),
        ({"label": "A"}, {}, None),
        ({"probability": 0.5}, {"probability": 0.6}, None),
        ({"probability": 0.5}, {"probability": float("nan")}, None),
        ({"value": 2000.0}, {"value": 2000.5}, 0.5),
        ({"entities": [{"start": 1, "score": 0.5}]}, {"entities": [{"start": 1, "score": 0.5}]}, 0.0),
        ({"entities": [{"start": 1}]}, {"entities": [{"start": 2}]}, None),
        ({"entities": [{"start": 1}]}, {"entities": []}, None),
        ({"embedding": [0.1, 0.2]}, {"embedding": [0.1, 0.2004]}, 0.0004),
        ({"embedding": [0.1, 0.2]}, {"embedding": [0.1]}, None),
        ({"truncated": False}, {"truncated": True}, None),
    ],
)
def test_answers_are_compared_in_words_and_numbers(
    expected: object, given: object, difference: float | None
) -> None:
    found = answer_difference(expected, given, 1e-3)
    assert found is None if difference is None else found == pytest.approx(difference)


@pytest.mark.parametrize(
    ("expected", "given", "tie"),
    [
        (
            {"label": "A", "scores": {"A": 0.51, "B": 0.49}},
            {"label": "B", "scores": {"A": 0.49, "B": 0.51}},
            True,
        ),
        (
            {"label": "A", "scores": {"A": 0.9, "B": 0.1}},
            {"label": "B", "scores": {"A": 0.1, "B": 0.9}},
            False,
        ),
        ({"labels": ["A"], "scores": {"A": 0.51}}, {"labels": [], "scores": {"A": 0.49}}, True),
        ({"entities": [{"label": "LOC"}]}, {"entities": []}, True),
        ({"value": 1.0}, {"value": 3.0}, False),
        ({"embedding": [1.0]}, {"embedding": [-1.0]}, False),
    ],
)
def test_only_an_answer_in_words_may_be_a_tie(
    expected: dict[str, object], given: dict[str, object], tie: bool
) -> None:
    assert may_be_a_tie(expected, given, 0.05) is tie
