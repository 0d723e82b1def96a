"""Resuming: exact after a kill at any moment, and refused where it cannot be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertmp import train
from bertmp.core.errors import InputError, TrainingStopped
from bertmp.training.checkpoints import (
    Position,
    State,
    States,
    check_identity,
    remove_leftovers,
    write_tensors,
)
from bertmp.training.metrics import read_metrics
from bertmp.training.train import TrainResult
from tests.conftest import RunBertmp

WALL_CLOCK = ("seconds", "tokens_per_second", "examples_per_second")


@pytest.fixture(scope="module")
def data(trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 real questions of all labels."""
    path = tmp_path_factory.mktemp("data") / "questions.tsv"
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()[:120]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(data: Path, model: Path, out: Path, **options: Any) -> TrainResult:
    return train("classification", data, model, out, **{"batch_size": 16, "learning_rate": 1e-3, **options})


def equal(first: Any, second: Any) -> bool:
    """Whether two nests of tensors are the same to the bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves and that does not depend on the clock."""
    lines = read_metrics(out / "metrics.jsonl")
    newest = max((out / "steps").iterdir())
    record = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    return {
        "weights": load_file(out / "final" / "model.safetensors"),
        "ranges": json.loads((out / "final" / "activation-ranges.json").read_text(encoding="utf-8")),
        "metrics": [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines],
        "optimizer": torch.load(newest / "tensors.pt", weights_only=True),
        "progress": record["progress"],
        "position": {k: v for k, v in record["position"].items() if k != "seconds"},
    }


def assert_same(first: Path, second: Path) -> None:
    one, two = outcome(first), outcome(second)
    for name in one:
        assert equal(one[name], two[name]), name


SCRIPT = """
import json, sys, torch
from bertmp import train
threads, data, model, out, options = sys.argv[1:]
torch.set_num_threads(int(threads))
train("classification", data, model, out, resume=True, **json.loads(options))
"""


def run_and_kill(
    data: Path, model: Path, out: Path, options: dict[str, Any], when: Callable[[], bool]
) -> bool:
    """Resumes a run in a process of its own and kills it as soon as `when` holds.

    Returns whether the process was still alive.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", SCRIPT, str(torch.get_num_threads())),
            *(str(data), str(model), str(out), json.dumps(options)),
        ],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and not when() and time.monotonic() < deadline:
            time.sleep(0.001)
        alive = process.poll() is None
    finally:
        # The whole session: its workers too, as where a machine goes down.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return alive


def reached(out: Path, lines: int) -> Callable[[], bool]:
    """Whether the metrics file has so many lines."""
    path = out / "metrics.jsonl"
    return lambda: path.is_file() and path.read_bytes().count(b"\n") >= lines


def writing(out: Path, after: int) -> Callable[[], bool]:
    """Whether a state after the one of step `after` is just being written."""
    folder = out / "steps"
    return lambda: any(
        f".step-{step:08d}." in name for name in _names(folder) for step in range(after + 1, 41)
    )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


KILLS: dict[str, list[Callable[[Path], Callable[[], bool]]]] = {
    "fp32": [lambda out: writing(out, 12)],
    "bf16": [lambda out: reached(out, 4), lambda out: reached(out, 9)],
    "fp16": [lambda out: reached(out, 8)],
}


@pytest.mark.parametrize(
    "precision", [pytest.param(one, marks=[pytest.mark.slow] * (one != "fp16")) for one in KILLS]
)
def test_a_killed_run_ends_like_one_that_was_not(
    precision: str, data: Path, tiny: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "steps": 40, "batch_size": 16, "learning_rate": 1e-3, "precision": precision, "log_every": 3,
        "save_every": 4, "gradient_accumulation_steps": 2, "num_workers": 1, "eval_data": str(data),
        "eval_every": 15, "loss_scale_growth_interval": 7, "init_loss_scale": 2.0**18,
    }  # fmt: skip
    run(data, tiny, tmp_path / "whole", **options)
    broken = tmp_path / "broken"
    killed = [run_and_kill(data, tiny, broken, options, when(broken)) for when in KILLS[precision]]
    assert all(killed), "the run was over before it could be killed"
    assert not (broken / "final").exists()
    run(data, tiny, broken, resume=True, **options)
    assert_same(tmp_path / "whole", broken)
    assert not [path for path in broken.rglob("*") if path.name.endswith((".part", ".old"))]
    assert len(list((broken / "steps").iterdir())) == 2


def test_a_run_resumed_from_each_of_its_states_ends_the_same(data: Path, tiny: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "steps": 12,
        "save_every": 5,
        "log_every": 4,
        "save_total_limit": 9,
        "eval_data": data,
    }
    whole = tmp_path / "whole"
    expected = run(data, tiny, whole, **options)
    states = sorted(path.name for path in (whole / "steps").iterdir())
    assert states == ["step-00000005", "step-00000010"]
    for name in states:
        copy = tmp_path / name
        shutil.copytree(whole, copy)
        for later in (copy / "steps").iterdir():
            if later.name > name:
                shutil.rmtree(later)
        result = run(data, tiny, copy, resume=True, **options)
        assert result.evaluation == expected.evaluation
        assert_same(whole, copy)


def test_a_finished_run_resumed_does_nothing_and_says_the_same(
    data: Path, tiny: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"steps": 6, "save_every": 3, "eval_data": data}
    first = run(data, tiny, tmp_path / "run", **options)
    before = outcome(tmp_path / "run")
    second = run(data, tiny, tmp_path / "run", resume=True, **options)
    assert (second.evaluation, second.steps) == (first.evaluation, first.steps)
    assert all(equal(before[name], value) for name, value in outcome(tmp_path / "run").items())


class TestAPoisonedBatch:
    """A rare word whose embedding overflows every batch it is in: it returns after every resume."""

    @pytest.fixture(scope="class")
    def poisoned(self, tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        """A checkpoint with one embedding near the end of FP32, and data with its word in one question."""
        folder = tmp_path_factory.mktemp("poisoned")
        model = Path(shutil.copytree(tiny, folder / "model"))
        word = (tiny / "vocab.txt").read_text(encoding="utf-8").splitlines().index("poison")
        tensors = load_file(model / "model.safetensors")
        tensors["embeddings.word_embeddings.weight"][word] = 3e38
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        texts = folder / "data.tsv"
        texts.write_text(data.read_text(encoding="utf-8") + "DESC\tWhat is poison ?\n", encoding="utf-8")
        return texts, model

    def test_is_skipped_each_time_it_comes(self, poisoned: tuple[Path, Path], tmp_path: Path) -> None:
        out = tmp_path / "run"
        result = run(*poisoned, out, steps=20, save_every=2, save_total_limit=20)
        faults = [line for line in read_metrics(out / "metrics.jsonl") if "event" in line]
        assert result.skipped_steps == len(faults) >= 2  # once an epoch of 8 steps
        assert {(line["module"], line["kind"], line["action"]) for line in faults} == {
            ("bert.embeddings.LayerNorm", "output", "skip")
        }
        first = faults[0]["step"]
        for later in (out / "steps").iterdir():
            if int(later.name.removeprefix("step-")) >= first:
                shutil.rmtree(later)
        assert run(
            *poisoned, out, steps=20, save_every=2, save_total_limit=20, resume=True
        ).skipped_steps == len(faults)

    def test_stops_the_run_again_where_it_may_not_be_skipped(
        self, poisoned: tuple[Path, Path], tmp_path: Path
    ) -> None:
        said = []
        for resume in (False, True, True):
            with pytest.raises(TrainingStopped) as stopped:
                run(
                    *poisoned,
                    tmp_path / "run",
                    steps=20,
                    save_every=2,
                    max_consecutive_skips=1,
                    resume=resume,
                )
            said.append(str(stopped.value))
        assert said[0] == said[1] == said[2]
        assert "the output of bert.embeddings.LayerNorm is not finite" in said[0]
        assert "the last good state is" in said[0]


class TestStates:
    def states(self, folder: Path, **identity: Any) -> States:
        return States(folder, 2, identity)

    def save(self, states: States, *steps: int) -> None:
        for step in steps:
            states.save(State(Position(step), {"losses": [0.1 * step]}, {"w": torch.full((9,), float(step))}))

    def test_the_newest_are_kept(self, tmp_path: Path) -> None:
        states = self.states(tmp_path)
        self.save(states, 5, 10, 15)
        assert sorted(os.listdir(tmp_path)) == ["step-00000010", "step-00000015"]
        newest = states.newest(print)
        assert newest is not None
        assert (newest.position.step, newest.progress) == (15, {"losses": [1.5]})
        assert equal(dict(newest.tensors), {"w": torch.full((9,), 15.0)})

    @pytest.mark.parametrize("file", ["tensors.pt", "state.json"])
    @pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
    def test_a_damaged_one_falls_back_and_says_so(self, file: str, damage: str, tmp_path: Path) -> None:
        states = self.states(tmp_path)
        self.save(states, 1, 2)
        path = tmp_path / "step-00000002" / file
        content = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        else:
            content[len(content) // 2] ^= 1
            path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
        said: list[str] = []
        newest = states.newest(said.append)
        assert newest is not None
        assert newest.position.step == 1
        assert len(said) == 1
        assert said[0].startswith("step-00000002 is damaged")

    def test_a_state_of_another_run_is_refused_in_words(self, tmp_path: Path) -> None:
        self.save(self.states(tmp_path, **{"--seed": 1, "data contents": "abc"}), 3)
        with pytest.raises(InputError, match="the state was made with --seed 1, now it is 2"):
            self.states(tmp_path, **{"--seed": 2, "data contents": "abc"}).newest(print)
        with pytest.raises(InputError, match="the state was made with another data "):
            self.states(tmp_path, **{"--seed": 1, "data contents": "abd"}).newest(print)

    def test_a_full_disk_is_one_line_and_leaves_the_states_before(self, tmp_path: Path) -> None:
        states = self.states(tmp_path / "steps")
        self.save(states, 1)
        before = os.listdir(tmp_path / "steps")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write_tensors(Path("/dev/full"), {"w": torch.zeros(100_000)})

        class Full(UserDict[str, Any]):
            """Tensors that no disk takes: a stand-in for a write that fails in the middle."""

            def __getitem__(self, name: str) -> Any:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(InputError, match="no space left on the disk") as full:
            states.save(State(Position(2), {}, Full(w=1)))
        assert "step-00000002" in str(full.value)
        assert os.listdir(tmp_path / "steps") == before

    def test_what_a_killed_process_left_is_removed_and_nothing_else(self, tmp_path: Path) -> None:
        for name in ("steps/.step-00000004.x.part", "steps/.step-00000004.y.old", "steps/step-00000002"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / ".metrics.jsonl.z.part").write_text("half")
        (tmp_path / ".mine").write_text("kept")
        remove_leftovers(tmp_path)
        assert sorted(os.listdir(tmp_path)) == [".mine", "steps"]
        assert os.listdir(tmp_path / "steps") == ["step-00000002"]


class TestRefusals:
    @pytest.fixture(scope="class")
    def done(self, data: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run with a state after step 2 of 4."""
        out = tmp_path_factory.mktemp("done") / "run"
        run(data, tiny, out, steps=4, save_every=2)
        return out

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"learning_rate": 2e-3}, "--learning-rate 0.001, now it is 0.002"),
            ({"steps": 8}, "--steps 4, now it is 8"),
            ({"batch_size": 8}, "--batch-size 16, now it is 8"),
            ({"seed": 1}, "--seed 0, now it is 1"),
            ({"precision": "fp32"}, "--precision bf16, now it is fp32"),
            ({"weight_decay": 0.0}, "--weight-decay 0.01, now it is 0.0"),
        ],
    )
    def test_other_settings(
        self, options: dict[str, Any], named: str, done: Path, data: Path, tiny: Path
    ) -> None:
        before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
        with pytest.raises(InputError) as refused:
            run(data, tiny, done, **{"steps": 4, "save_every": 2, "resume": True, **options})
        assert f"the state was made with {named} (" in str(refused.value)
        assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before

    def test_what_changes_nothing_learned_may_change(self, done: Path, data: Path, tiny: Path) -> None:
        weights = (done / "final" / "model.safetensors").read_bytes()
        other = {"save_every": 1, "save_total_limit": 3, "num_workers": 1, "log_every": 1, "eval_data": data}
        resumed = run(data, tiny, done, steps=4, resume=True, **other)
        assert resumed.steps == 4
        assert (done / "final" / "model.safetensors").read_bytes() == weights

    def test_other_data_model_and_tokenizer(self, done: Path, data: Path, tiny: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.tsv"
        other.write_text(data.read_text(encoding="utf-8").replace("What", "Which"), encoding="utf-8")
        with pytest.raises(InputError, match="made with another data"):
            run(other, tiny, done, steps=4, resume=True)
        for name, change in (("model", _nudge), ("tokenizer", _relabel)):
            model = Path(shutil.copytree(tiny, tmp_path / name))
            change(model)
            with pytest.raises(InputError, match=f"made with another {name}"):
                run(data, model, done, steps=4, resume=True)

    def test_on_the_command_line(self, done: Path, run_bertmp: RunBertmp) -> None:
        refused = run_bertmp(
            *("train", "classification", "--config", done / "config.toml"), *("--seed", 7, "--resume")
        )
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: the state was made with --seed 0, now it is 7 (")
        assert refused.stderr.count("\n") == 1


def _nudge(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["pooler.dense.bias"][0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _relabel(model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"poison"', '"poisom"'), encoding="utf-8")


def test_identity_recorded_by_version_0_1_matches_under_its_former_names() -> None:
    wanted = {"--layerwise-lr-decay": 0.9, "--warmup-ratio": 0.2, "--seed": 3}
    check_identity({"--layer-decay": 0.9, "--warmup": 0.2, "--seed": 3}, wanted, Path("state"))
    with pytest.raises(InputError, match=r"was made with --warmup-ratio 0\.5, now it is 0\.2"):
        check_identity({"--layer-decay": 0.9, "--warmup": 0.5, "--seed": 3}, wanted, Path("state"))
