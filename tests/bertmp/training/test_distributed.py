"""Several processes are one run: the same losses and weights in every layout, and states that move."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertmp import train
from bertmp.core.errors import InputError
from bertmp.model.bert import SelfAttention
from bertmp.model.config import BertConfig
from bertmp.model.packed import Packed
from bertmp.training.distributed import Processes
from bertmp.training.distributed.sharding import fork_attention_dropout_rng
from bertmp.training.metrics import read_metrics
from tests.conftest import REPOSITORY, RunBertmp

pytestmark = pytest.mark.slow  # two and four processes on two cores

COMMON: dict[str, Any] = {
    "precision": "fp32",
    "batch_size": 8,
    "steps": 6,
    "save_every": 3,
    "eval_every": 6,
    "log_every": 1,
    "learning_rate": 1e-3,
    "save_total_limit": 2,
}

LAMB = {"optimizer": "lamb", "steps": 3}
FP16 = {"precision": "fp16", "steps": 3}
PRETRAINING = {"task": "pretraining", "steps": 3}
MASKED_WORDS = {**PRETRAINING, "no_nsp": True}

TWO: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp-less-memory": {"gradient_accumulation_steps": 2, "activation_checkpointing": True},
    "ddp-bf16": {"precision": "bf16"},
    "fsdp": {"fsdp": True},
    "fsdp-less-memory": {"fsdp": True, "gradient_accumulation_steps": 2, "activation_checkpointing": True},
    "fsdp-bf16": {"fsdp": True, "precision": "bf16"},
    "tp": {"tensor_parallel": 2},
    "tp-lamb": {"tensor_parallel": 2, **LAMB},
    "ddp-masked-words": MASKED_WORDS,
}
"""Layouts of two processes."""

FOUR: dict[str, dict[str, Any]] = {
    "ddp-4": {},
    "ddp-tp": {"data_parallel": 2, "tensor_parallel": 2},
    "fsdp-tp": {"data_parallel": 2, "tensor_parallel": 2, "fsdp": True},
    "fsdp-tp-lamb": {"tensor_parallel": 2, "fsdp": True, **LAMB},
    "fsdp-tp-less-memory": {
        "tensor_parallel": 2, "fsdp": True, "gradient_accumulation_steps": 2,
        "activation_checkpointing": True, "precision": "bf16",
    },
    "fsdp-tp-pretraining": {"tensor_parallel": 2, "fsdp": True, **PRETRAINING},
    "fsdp-tp-fp16": {"tensor_parallel": 2, "fsdp": True, **FP16},
}  # fmt: skip
"""Layouts of four processes."""

ALONE: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {**FP16},
    "lamb": LAMB,
    "pretraining": PRETRAINING,
    "masked-words": MASKED_WORDS,
    "accumulated": {"gradient_accumulation_steps": 3},
    "recomputed": {"activation_checkpointing": True},
}
"""One process."""


def torchrun(processes: int, *command: object) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return [*launcher, str(processes), *map(str, command)]


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small BERT without dropout: what is dropped depends on the layout."""
    folder = tmp_path_factory.mktemp("still") / "checkpoint"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 questions: the last batch of an epoch has two, which leaves two of four processes without any."""
    path = tmp_path_factory.mktemp("data") / "questions.tsv"
    lines = (trec / "train.tsv").read_text(encoding="utf-8").splitlines()[:26]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, one process and several."""
    folder = tmp_path_factory.mktemp("runs")
    pairs = folder / "pairs.tsv"
    rows = [line.split("\t")[1] for line in data.read_text(encoding="utf-8").splitlines()]
    lines = ["text\ttext_pair", *map("\t".join, itertools.pairwise(rows))]
    pairs.write_text("".join(f"{line}\n" for line in lines))

    def arguments(name: str, options: dict[str, Any]) -> dict[str, Any]:
        file = pairs if options.get("task") == "pretraining" else data
        files = {"data": str(file), "model": str(model), "out": str(folder / name)}
        return {"task": "classification", **COMMON, **files, **options}

    for name, options in ALONE.items():
        settings = arguments(name, options)
        train(eval_data=Path(settings["data"]), **settings)
    half_of(folder / "fp32", folder / "from-alone")
    overflows = {"overflows": {"tensor_parallel": 2, "fsdp": True, **FP16, "init_loss_scale": 2.0**18}}
    moved = overflows | {"from-alone": {"tensor_parallel": 2, "fsdp": True, "resume": True}}
    for processes, wanted in ((2, TWO), (4, FOUR | moved)):
        plan = folder / f"plan-{processes}.json"
        plan.write_text(json.dumps([arguments(name, options) for name, options in wanted.items()]))
        done = subprocess.run(
            torchrun(processes, REPOSITORY / "tests" / "bertmp" / "training" / "layouts_worker.py", plan),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    return folder


def half_of(run: Path, target: Path) -> None:
    """A copy of a run as it stood after its first saved state."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "final")
    *_, last = sorted((target / "steps").iterdir())
    shutil.rmtree(last)


def curve(run: Path, figure: str = "loss") -> list[float]:
    """A figure of every line that has it; the norm of a step that overflowed is none."""
    lines = read_metrics(run / "metrics.jsonl")
    return [line[figure] for line in lines if line.get(figure) is not None]


def events(run: Path) -> list[tuple[Any, ...]]:
    """What the overflow watch saw and did."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "event" in line]
    return [tuple(line.get(key) for key in ("step", "event", "module", "kind", "action")) for line in lines]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (first, second))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.endswith("attention.self.key.bias"):
            continue  # it moves all scores of a softmax alike: its gradient is rounding, which Adam scales up
        torch.testing.assert_close(
            tensor, theirs[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def twin(options: dict[str, Any]) -> str:
    """The run of one process that a layout must agree with."""
    if "task" in options:
        return "masked-words" if "no_nsp" in options else "pretraining"
    return "lamb" if "optimizer" in options else options.get("precision", "fp32")


ALL = {**TWO, **FOUR, **{name: ALONE[name] for name in ("accumulated", "recomputed")}}


@pytest.mark.parametrize("name", ALL)
def test_every_layout_trains_as_one_process_does(name: str, runs: Path) -> None:
    other = twin(ALL[name])
    exact = other not in ("bf16", "fp16")
    for figure in ("loss", "grad_norm", "eval_loss"):
        wanted = curve(runs / other, figure)
        assert len(wanted) >= 1
        assert curve(runs / name, figure) == pytest.approx(wanted, rel=2e-5 if exact else 0.02), figure
    assert curve(runs / name, "skipped_steps") == curve(runs / other, "skipped_steps")
    assert events(runs / name) == events(runs / other)
    if exact:
        assert_same_weights(runs / name, runs / other)


def test_an_overflow_in_a_piece_of_the_gradients_is_seen_by_all(runs: Path) -> None:
    steps = [line for line in read_metrics(runs / "overflows" / "metrics.jsonl") if "loss_scale" in line]
    assert [line["loss_scale"] for line in steps if "event" not in line][:2] == [2.0**18, 2.0**17]
    assert [line["skipped_steps"] for line in steps if "event" not in line][:2] == [1, 1]
    assert events(runs / "overflows")[0] == (1, "non-finite", "classifier", "gradient", "skip")


def test_a_state_of_one_process_goes_on_in_four(runs: Path) -> None:
    assert curve(runs / "from-alone") == pytest.approx(curve(runs / "fp32"), rel=2e-5)
    assert_same_weights(runs / "from-alone", runs / "fp32")


@pytest.mark.parametrize("name", ["ddp-tp", "fsdp-tp", "fsdp-less-memory", "tp"])
def test_a_state_of_several_processes_goes_on_in_one(
    name: str, runs: Path, data: Path, model: Path, tmp_path: Path
) -> None:
    half_of(runs / name, tmp_path / "run")
    train("classification", data, model, tmp_path / "run", eval_data=data, resume=True, **COMMON)
    assert curve(tmp_path / "run") == pytest.approx(curve(runs / "fp32"), rel=2e-5)
    assert_same_weights(tmp_path / "run", runs / "fp32")


def test_dropout_that_is_recomputed_drops_the_same(data: Path, tiny: Path, tmp_path: Path) -> None:
    for name, option in (("kept", False), ("recomputed", True)):
        options = {**COMMON, "steps": 3, "activation_checkpointing": option}
        train("classification", data, tiny, tmp_path / name, **options)
    assert curve(tmp_path / "kept") == curve(tmp_path / "recomputed")
    assert_same_weights(tmp_path / "kept", tmp_path / "recomputed")


def test_dropout_differs_between_the_parts_of_a_layer_and_nowhere_else() -> None:
    config = BertConfig(hidden_size=32, num_attention_heads=4, attention_probs_dropout_prob=0.5)
    hidden, layout = torch.randn(12, 32), Packed.of([12], torch.device("cpu"))
    weights = SelfAttention(config).state_dict()
    inside, outside = [], []
    for rank in (0, 1, 0):
        attention = SelfAttention(config)
        attention.load_state_dict(weights)
        fork_attention_dropout_rng(attention, rank)
        torch.manual_seed(0)
        inside.append(attention(hidden, layout))
        outside.append(torch.rand(4))
    assert torch.equal(inside[0], inside[2])
    assert not torch.equal(inside[0], inside[1])
    assert torch.equal(outside[0], outside[1])


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (1, (2, 1, False), "--data-parallel 2 --tensor-parallel 1 needs 2 processes and there is 1"),
        (2, (None, 3, False), "--data-parallel 1 --tensor-parallel 3 needs 3 processes and there are 2"),
        (4, (3, 1, True), "--data-parallel 3 --tensor-parallel 1 needs 3 processes and there are 4"),
    ],
)
def test_layouts_that_do_not_fit_the_processes(
    size: int, options: tuple[int | None, int, bool], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Processes(0, size, torch.device("cpu")).arrange(*options)


def test_without_torchrun_the_error_says_how_to_start(
    data: Path, tiny: Path, tmp_path: Path, run_bertmp: RunBertmp
) -> None:
    files = ("--data", data, "--model", tiny, "--out", tmp_path / "run")
    done = run_bertmp("train", "classification", *files, "--data-parallel", 2, "--tensor-parallel", 2)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --data-parallel 2 --tensor-parallel 2 needs 4 processes")
    assert "torchrun --nproc-per-node 4 -m bertmp train" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_error_of_all_is_told_by_one(data: Path, tiny: Path, tmp_path: Path) -> None:
    """A model of three heads for two tensor-parallel processes."""
    odd = tmp_path / "odd"
    shutil.copytree(tiny, odd)
    (odd / "model.safetensors").unlink()
    config = json.loads((odd / "config.json").read_text()) | {"num_attention_heads": 3, "hidden_size": 36}
    (odd / "config.json").write_text(json.dumps(config))
    files = ("--data", data, "--model", odd / "config.json", "--out", tmp_path / "run")
    done = subprocess.run(
        torchrun(2, "-m", "bertmp", "train", "classification", *files, "--tensor-parallel", 2),
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert told == [
        "error: the model's 3 heads do not divide into 2 parts (--tensor-parallel): give a divisor of 3"
    ], done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def long_run(data: Path, tiny: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of two processes that has begun to train and would not end soon, in `tmp_path / "run"`."""
    files = ("--data", data, "--model", tiny, "--out", tmp_path / "run")
    options = ("--batch-size", 4, "--epochs", 9999, "--log-every", 1, "--save-every", 999999, "--fsdp")
    process = subprocess.Popen(
        torchrun(2, "-m", "bertmp", "train", "classification", *files, *options),
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and metrics.read_text().count("\n") >= 3:
            break
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that another has started, from Linux's own list."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc to find the processes")
def test_a_dead_process_takes_the_others_with_it(long_run: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = children(long_run)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, stderr = long_run.communicate(timeout=60)
    assert long_run.returncode == 1
    assert "Signal 9 (SIGKILL)" in stderr
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_ctrl_c_ends_all_processes_at_the_same_step(long_run: subprocess.Popen[str], tmp_path: Path) -> None:
    long_run.send_signal(signal.SIGINT)
    _, stderr = long_run.communicate(timeout=60)
    (state,) = (tmp_path / "run" / "steps").iterdir()
    assert json.loads((state / "state.json").read_text())["position"]["step"] >= 3
    assert stderr.count("interrupted\n") == 1, stderr
    assert not list((tmp_path / "run").rglob("*.part"))
