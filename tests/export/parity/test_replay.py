"""`--replay`: the inputs that a run failed on are saved, and asked again alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertmp import parity, replay
from bertmp.core.errors import InputError
from bertmp.export.bundle import FP16_GRAPH
from bertmp.export.parity.failing_inputs import FAILING_INPUTS
from tests.export.adversarial_faults import leak_padding_rows, spoil_unknown
from tests.export.inconsistent_graphs import Fault
from tests.export.parity_bundles import LOW, Served, adopt, damage, mix_up

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("w1 w2 w3\nw4 w5\n")
    return path


def failing(bundle: Path) -> Any:
    return json.loads((bundle / "parity" / FAILING_INPUTS).read_text())


@pytest.mark.parametrize(
    ("fault", "kind"), [(spoil_unknown, "all [UNK]"), (leak_padding_rows, "beside a padding row")]
)
def test_failing_inputs_are_saved_and_fail_again_until_the_fault_is_gone(
    bundle: Path, exported: Path, data: Path, fault: Fault, kind: str
) -> None:
    mix_up(bundle, fault)
    first = parity(bundle, data, seed=5)
    saved = failing(bundle)
    assert (saved["format"], saved["task"], saved["seed"]) == (1, "classification", 5)
    named = {entry["batch"][one["row"]]["kind"] for entry in saved["inputs"] for one in entry["failing"]}
    assert kind in named
    assert {one["stage"] for entry in saved["inputs"] for one in entry["failing"]} == {*LOW}
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    again = replay(bundle, bundle / "parity" / FAILING_INPUTS)
    assert again.verdict == "failed"
    assert [gate.stage for gate in again.gates if not gate.passed] == list(LOW)
    assert again.found.inputs < first.adversarial.inputs  # type: ignore[union-attr]
    assert {path: path.read_bytes() for path in before} == before  # the manifest and the certificate, too
    assert json.loads((bundle / "parity" / "replay" / "replay.json").read_text())["verdict"] == "failed"
    (bundle / FP16_GRAPH).write_bytes((exported / FP16_GRAPH).read_bytes())
    adopt(bundle)
    assert replay(bundle, bundle / "parity" / FAILING_INPUTS).verdict == "passed"


def test_failing_examples_are_saved_with_their_lines_and_a_sound_run_removes_the_file(
    bundle: Path, exported: Path, data: Path
) -> None:
    damage(bundle, 0.5)
    parity(bundle, data)
    kinds = {row["kind"] for entry in failing(bundle)["inputs"] for row in entry["batch"]}
    assert "line 1" in kinds
    texts = [row["text"] for entry in failing(bundle)["inputs"] for row in entry["batch"]]
    assert "w1 w2 w3" in texts
    assert replay(bundle, bundle / "parity" / FAILING_INPUTS).verdict == "failed"
    (bundle / FP16_GRAPH).write_bytes((exported / FP16_GRAPH).read_bytes())
    adopt(bundle)
    assert parity(bundle, data).passed
    assert not (bundle / "parity" / FAILING_INPUTS).exists()


def test_a_stage_that_had_failed_and_is_not_asked_makes_a_replay_incomplete(bundle: Path, data: Path) -> None:
    class Refusing(Served):
        def run(self, inputs: Any, advance: Any) -> Any:
            if any("\U0001f600" in text for text in inputs.texts):
                raise InputError("it takes no such text", "triton", "fix it")
            return super().run(inputs, advance)

    parity(bundle, data, extra_stages=[Refusing(bundle / "model.onnx")])
    file = bundle / "parity" / FAILING_INPUTS
    alone = replay(bundle, file)
    assert (alone.verdict, alone.missing) == ("incomplete", ("triton",))
    assert alone.not_asked["triton"] == "no --server was given"
    assert replay(bundle, file, extra_stages=[Refusing(bundle / "model.onnx")]).verdict == "failed"
    assert replay(bundle, file, extra_stages=[Served(bundle / "model.onnx")]).verdict == "passed"


@pytest.mark.slow
def test_the_command_replays_without_data(bundle: Path, data: Path, run_bertmp: Run) -> None:
    mix_up(bundle, spoil_unknown)
    assert run_bertmp("parity", bundle, "--data", data).returncode == 1
    file = bundle / "parity" / FAILING_INPUTS
    done = run_bertmp("parity", bundle, "--replay", file)
    assert done.returncode == 1, done.stderr
    assert "failed onnx-fp16: " in done.stdout
    assert "a replay is no verdict" in done.stdout
    told = run_bertmp("parity", bundle, "--replay", file, "--json")
    assert json.loads(told.stdout)["verdict"] == "failed"


ROW = {
    "kind": "x",
    "text": None,
    "text_pair": None,
    "input_ids": [2, 5, 3],
    "attention_mask": [1, 1, 1],
    "token_type_ids": [0, 0, 0],
    "positions": None,
}


def content(**changes: Any) -> str:
    row = {**ROW, **{name: value for name, value in changes.items() if name in ROW}}
    entry = {"failing": [{"row": 0, "stage": "onnx-fp16", "error": 1, "sentence": ""}], "batch": [row]}
    head = {"format": 1, "task": "classification", "seed": 0, "left_out": 0, "inputs": [entry]}
    return json.dumps({**head, **{name: value for name, value in changes.items() if name not in ROW}})


def test_a_file_as_it_is_written_here_is_replayed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(content())
    assert replay(bundle, tmp_path / "file.json").verdict == "passed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a file of failing inputs"),
        ("{", "file.json"),
        (content(format=9), "of format 9, not 1"),
        (content(task="regression"), "the bundle's task is classification"),
        (content(inputs=[]), "no failing inputs"),
        (content(inputs=[{"failing": []}]), "damaged"),
        (content(input_ids=[2, 10**6, 3]), "token id 1000000 is outside 0 to "),
        (content(input_ids=[2, -1, 3]), "token id -1 is outside"),
        (content(token_type_ids=[0, 7, 0]), "token type 7 is outside 0 to 1"),
        (content(input_ids=[2, 3]), "different lengths"),
        (content(attention_mask=[0, 1, 1]), "padding before a token"),
        (content(input_ids=[2.5, 3, 3]), "damaged"),
        (content(text=" "), "damaged"),
        (content(positions=[3]), "positions outside of the row"),
        (
            content(**{name: [1] * 41 for name in ("input_ids", "attention_mask", "token_type_ids")}),
            "41 tokens",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(bundle: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError) as raised:
        replay(bundle, tmp_path / "file.json")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (bundle / "parity").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no --data"),
        (["--data", "texts.txt", "--replay", "file.json"], "both --data and --replay"),
        (["--replay", "file.json", "--require", "engine"], "--require with --replay"),
        (["--replay", "missing.json"], "missing.json"),
        (["--replay", "bad.json"], "token id 1000000"),
        (["--data", "empty.txt"], "no rows"),
        (["--data", "labelled.tsv"], "does not know the label 'mineral'"),
        (["--data", "texts.txt", "--gates", "gates.toml"], "unknown gate 'adversary'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Path, tmp_path: Path, run_bertmp: Run, options: list[str], message: str
) -> None:
    (tmp_path / "texts.txt").write_text("w1\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "labelled.tsv").write_text("animal\tw1\nmineral\tw2\n")
    (tmp_path / "gates.toml").write_text("[onnx-fp16]\nadversary = false\n")
    (tmp_path / "file.json").write_text(content())
    (tmp_path / "bad.json").write_text(content(input_ids=[2, 10**6, 3]))
    placed = [str(tmp_path / one) if "." in one else one for one in options]
    done = run_bertmp("parity", bundle, *placed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (bundle / "parity").exists()
