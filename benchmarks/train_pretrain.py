"""Pre-training a model of MiniLM's size on film dialogues, against `BertForPreTraining`."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ab_runs import Measure, Run, alternate, both, of_side, say, speed
from benchmarks.flops import Work, pretraining_flops
from benchmarks.size import Size
from benchmarks.subprocess_runner import run_child

SETTINGS: dict[str, Any] = {"batch_size": 32, "max_length": 128, "learning_rate": 1e-4}
OURS, PEER = "benchmarks.bertmp.pretrain", "benchmarks.baselines.pretrain"
HELD_OUT = 512
"""Pairs at the file's end that neither side trains on: for the held-out loss."""
MASKED = 0.15


def pretrain(size: Size, scratch: Path) -> dict[str, Any]:
    """Measures both sides from one set of random weights, and scores both results with one script.

    The loss is the mean over the last half of the steps and all seeds, each step's as the side reports it;
    `held_out_loss` is computed by `baselines/score.py`, on the same batches and masks for both.
    """
    from bertmp import download

    folders = download(["moviedialog", "minilm"])
    model = scratch / "start"
    run_child(
        "benchmarks.baselines.start", {"model": str(folders["minilm"]), "out": str(model)}, size.threads
    )
    data, held_out = split(folders["moviedialog"] / "pairs.tsv", scratch)

    def side(name: str, module: str, steps: int, **options: Any) -> Measure:
        arguments = {"data": str(data), "model": str(model), "steps": steps, "unmeasured": size.unmeasured}
        return lambda seed: run_child(
            module,
            {**arguments, **SETTINGS, **options, "out": str(scratch / f"{name}-{seed}"), "seed": seed},
            size.threads,
        )

    def peak(seed: int) -> dict[str, Any]:
        return run_child("benchmarks.machine", {"seconds": size.gemm_seconds}, size.threads)

    sides = {
        "peak": peak,
        "ours": side("ours", OURS, size.steps),
        "peer": side("peer", PEER, size.steps, padded=False),
    }
    runs = alternate(sides, size.seeds, show)
    say(f"  the peer padded to {SETTINGS['max_length']}:")
    fewer = size.unmeasured + max(1, (size.steps - size.unmeasured) // 3)
    runs += alternate({"padded": side("padded", PEER, fewer, padded=True)}, 1, show)
    peaks = {name: max(of_side(runs, "peak", name)) for name in ("bf16", "fp32")}
    ours, peer, padded = (speed(runs, name, "tokens") for name in ("ours", "peer", "padded"))
    flops = flops_per_token(data, model)
    return {
        "unit": "tokens/s",
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "peer_padded_to_128": padded,
        "loss": both(runs, "losses", lambda losses: statistics.fmean(settled(losses))),
        "loss_standard_error": both(runs, "losses", lambda losses: standard_error(settled(losses))),
        "held_out_loss": held_out_loss(size, scratch, held_out),
        "peak_memory_bytes": both(runs, "peak_memory_bytes", max),
        "flops_share": ours * flops / peaks["bf16"],
        "peer_flops_share": peer * flops / peaks["bf16"],
        "gemm_flops_per_second": peaks,
        "settings": {**SETTINGS, "steps": size.steps, "unmeasured": size.unmeasured, "precision": "bf16"},
        "runs": [{"side": run.side, "seed": run.seed, **run.values} for run in runs],
    }


def show(run: Run) -> str:
    """One run in one line."""
    values = run.values
    if run.side == "peak":
        return f"{values['bf16'] / 1e9:.0f} GFLOP/s in BF16, {values['fp32'] / 1e9:.0f} in FP32"
    rate, memory = values["tokens"] / values["seconds"], values["peak_memory_bytes"] / 1e6
    return f"{rate:.0f} tokens/s, loss {statistics.fmean(settled([values['losses']])):.3f}, {memory:.0f} MB"


def settled(runs: Sequence[Sequence[float]]) -> list[float]:
    """The losses of the last half of each run's steps."""
    return [loss for losses in runs for loss in losses[len(losses) // 2 :]]


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def held_out_loss(size: Size, scratch: Path, held_out: Path) -> dict[str, float]:
    """Each side's mean loss on held-out pairs over its seeds."""

    def loss(side: str, seed: int) -> float:
        arguments = {
            "data": str(held_out),
            "checkpoint": str(scratch / f"{side}-{seed}"),
            "max_length": SETTINGS["max_length"],
            "batch_size": SETTINGS["batch_size"],
            "count": size.held_out_batches,
        }
        return float(run_child("benchmarks.baselines.score", arguments, size.threads)["loss"])

    return {
        side: statistics.fmean(loss(side, seed) for seed in range(size.seeds)) for side in ("ours", "peer")
    }


def split(pairs: Path, scratch: Path) -> tuple[Path, Path]:
    """The pairs to train on and those held out, as two files with the header."""
    header, *lines = pairs.read_text(encoding="utf-8").splitlines(keepends=True)
    parts = []
    for name, rows in (("train.tsv", lines[:-HELD_OUT]), ("held-out.tsv", lines[-HELD_OUT:])):
        parts.append(scratch / f"pairs-{name}")
        parts[-1].write_text(header + "".join(rows), encoding="utf-8")
    return parts[0], parts[1]


def flops_per_token(data: Path, model: Path) -> float:
    """FLOPs per real token, on average, including the projection to the vocabulary at masked positions.

    Counted on the first 4,000 pairs: only the distribution of lengths matters.
    """
    from bertmp.data.readers import read_examples
    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.config import BertConfig

    examples = read_examples(data)
    assert examples.pairs is not None
    texts, pairs = (list(itertools.islice(column, 4000)) for column in (examples.texts, examples.pairs))
    work = Work.of([len(row) for row in Tokenizer.load(model, SETTINGS["max_length"]).encode(texts, pairs)])
    masked = MASKED * (work.tokens - 3 * work.texts)
    return pretraining_flops(BertConfig.load(model), work, masked) / work.tokens
