"""The benchmarks run: everything small, on the CPU. Figures are checked for sense, not for size."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import pipeline
from benchmarks.ab_runs import Run, alternate, speed
from benchmarks.flops import Work, pretraining_flops
from benchmarks.gpu import Plan, line, report
from benchmarks.gpu_specs import datasheet
from benchmarks.machine import provenance
from benchmarks.synthetic import RandomTexts, masked
from bertmp.model import packed
from bertmp.model.config import BertConfig
from bertmp.model.heads import LossOptions
from bertmp.model.heads.pretraining import PreTraining
from bertmp.model.packed import Packed
from tests.conftest import REPOSITORY

TINY = BertConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    attention_probs_dropout_prob=0.0,
)


def test_the_gpu_benchmark_runs_in_every_precision() -> None:
    plan = Plan({"tiny": TINY}, ((16, 4),), unmeasured=1, measured=2, sizes=(64,), gemm_seconds=0.01)
    results = report(torch.device("cpu"), plan)
    rows = {row["precision"]: row for row in results["rows"]}
    assert list(rows) == ["fp32", "tf32", "bf16", "fp16"]
    assert rows["fp32"]["speed_to_fp32"] == rows["fp32"]["memory_to_fp32"] == 1.0
    for row in rows.values():
        assert row["batch"] == 4
        assert row["tokens_per_second"] == pytest.approx(16 * row["examples_per_second"])
        assert row["last_loss"] == pytest.approx(rows["fp32"]["last_loss"], rel=0.02)
        assert row["share_of_peak"] > 0
        assert "times FP32's speed" in line(row)
    assert set(results["goal"]["met"]) == {"tiny, length 16, bf16", "tiny, length 16, fp16"}


def test_ratios_to_fp32_are_between_rows_with_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[torch.dtype] = []

    def by_buckets(
        self: Packed, query: Tensor, key: Tensor, value: Tensor, size: int, queries: Packed
    ) -> Tensor:
        """Stands in for the kernel, which a CPU lacks."""
        kinds.append(query.dtype)
        with monkeypatch.context() as patched:
            patched.setattr(packed, "has_varlen_kernel", lambda query, size: False)
            return self.attend_queries(query, key, value, size, None, queries)

    half = (torch.float16, torch.bfloat16)
    monkeypatch.setattr(packed, "has_varlen_kernel", lambda query, size: query.dtype in half)
    monkeypatch.setattr(Packed, "_attend_varlen", by_buckets)
    plan = Plan({"tiny": TINY}, ((16, 4),), unmeasured=1, measured=2, sizes=(64,), gemm_seconds=0.01)
    results = report(torch.device("cpu"), plan)
    rows = [(row["precision"], row["attention"]) for row in results["rows"]]
    products, kernels = rows[:4], rows[4:]
    assert products == [(precision, "matmul") for precision in ("fp32", "tf32", "bf16", "fp16")]
    assert kernels == [("bf16", "varlen"), ("fp16", "varlen")]
    steps = plan.unmeasured + plan.measured
    assert kinds == [torch.bfloat16] * steps * 2 + [torch.float16] * steps * 2  # two blocks
    for row in results["rows"]:
        compared = {name for name in row if name.startswith("speed_to_")}
        assert compared == ({"speed_to_fp32"} if row["attention"] == "matmul" else {"speed_to_matmul"})
        assert row["last_loss"] == pytest.approx(results["rows"][0]["last_loss"], rel=0.02)
    assert set(results["goal"]["met"]) == {"tiny, length 16, bf16", "tiny, length 16, fp16"}


def test_time_that_is_over_leaves_rows_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.SECONDS", -1.0)
    plan = Plan({"tiny": TINY}, ((16, 4),), sizes=(64,), gemm_seconds=0.01)
    results = report(torch.device("cpu"), plan)
    assert all(row["left_out"] for row in results["rows"])
    assert results["goal"]["met"] == {}


def test_counted_work_is_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    sizes = [16, 16, 16, 16]  # a number of tokens to which none are added
    data = RandomTexts.of(TINY, sizes)
    head = PreTraining(TINY)
    head.bert.all_positions = True  # what is counted is the whole model's, for both sides
    batch = data.batch(torch.arange(4).numpy(), 0)
    with FlopCounterMode(display=False) as counter:
        head.loss_sums(batch, LossOptions()).sum().backward()
    predicted = len(batch.targets["masked"])
    assert predicted == 4 * masked(16)
    assert pretraining_flops(TINY, Work.of(sizes), predicted) == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )


def test_sides_take_turns() -> None:
    calls: list[str] = []

    def side(name: str) -> dict[str, float]:
        calls.append(name)
        return {"examples": 100 if name == "ours" else 50, "seconds": 2.0}

    sides = {name: lambda seed, name=name: side(name) for name in ("ours", "peer")}
    runs = alternate(sides, 3, lambda run: str(run.values["seconds"]))
    assert calls == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert runs[2] == Run("peer", 1, {"examples": 50, "seconds": 2.0})
    assert speed(runs, "ours", "examples") / speed(runs, "peer", "examples") == 2.0


def test_cards_are_known_by_the_drivers_name() -> None:
    assert datasheet("NVIDIA H100 80GB HBM3")["bf16"] == 989.4e12
    assert datasheet("NVIDIA H100 PCIe")["bf16"] == 756.5e12
    assert datasheet("NVIDIA A100-SXM4-80GB")["tf32"] == 156e12
    assert datasheet("NVIDIA L40S")["fp16"] == 362e12
    assert "bf16" not in datasheet("Tesla T4")
    assert datasheet("NVIDIA GeForce GTX 1650") == {}


def test_results_say_where_they_are_from() -> None:
    here = provenance(("torch", "no-such-package"))
    assert here["machine"]["cores"] >= 1
    assert here["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert "no-such-package" not in here["versions"]
    assert here["date"][:4] >= time.strftime("%Y")[:2]


def test_the_training_benchmark_cuts_its_data(tmp_path: Path) -> None:
    from benchmarks.train_finetune import head_of
    from benchmarks.train_pretrain import HELD_OUT, split

    source = tmp_path / "pairs.tsv"
    source.write_text("text\ttext_pair\n" + "".join(f"a{n}\tb{n}\n" for n in range(HELD_OUT + 5)))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    train, held_out = split(source, scratch)
    assert train.read_text().splitlines() == ["text\ttext_pair", *(f"a{n}\tb{n}" for n in range(5))]
    assert len(held_out.read_text().splitlines()) == HELD_OUT + 1
    assert head_of(source, None, scratch) == source
    assert head_of(source, 2, scratch).read_text() == "text\ttext_pair\na0\tb0\n"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("module", ["tests.gpu", "benchmarks.gpu"])
def test_without_a_gpu_it_is_one_line_and_code_4(module: str) -> None:
    done = python(module)
    assert done.returncode == 4
    assert done.stderr.startswith("error: no GPU (")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_the_gpus_tests_are_sound() -> None:
    """The quick ones, on the CPU; `BERTMP_REHEARSE=1 pytest tests/gpu` takes all."""
    chosen = "test_packed or gradients_are_those or named or static or fp32_under_autocast"
    done = python("pytest", "-q", "tests/gpu", "-k", chosen, BERTMP_REHEARSE="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout
    assert "10 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_parity_beside_its_stages_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipeline, "PARITY_TEXTS", 200)
    found = pipeline.measure_parity(tmp_path / "parity")
    assert found["texts"] == 200
    assert {"torch-fp32", "onnx-fp32", "onnx-fp16"} <= set(found["stages"])
    assert found["ratio_stages"] == found["seconds"] / sum(found["stages"].values()) > 1
    assert found["peak_memory_bytes"] > 0
