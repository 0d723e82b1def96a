"""Fine-tuning MiniLM on TREC, against `transformers.Trainer` with dynamic padding."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.ab_runs import Measure, Run, alternate, both, of_side, speed
from benchmarks.flops import Work, classifier_flops
from benchmarks.size import Size
from benchmarks.subprocess_runner import run_child

SETTINGS = {"batch_size": 32, "learning_rate": 1e-4}
SIDES = {"ours": "benchmarks.bertmp.finetune", "peer": "benchmarks.baselines.finetune"}


def finetune(size: Size, scratch: Path) -> dict[str, Any]:
    """Measures both sides; accuracies are means over the seeds, speeds are medians, memory the most seen."""
    from bertmp import download

    folders = download(["trec", "minilm"])
    model = folders["minilm"]
    data = {
        "data": str(head_of(folders["trec"] / "train.tsv", size.examples, scratch)),
        "eval_data": str(head_of(folders["trec"] / "test.tsv", size.examples, scratch)),
    }

    def side(module: str) -> Measure:
        arguments = {**data, "model": str(model), "epochs": size.epochs, **SETTINGS}
        return lambda seed: run_child(module, {**arguments, "seed": seed}, size.threads)

    def peak(seed: int) -> dict[str, Any]:
        return run_child("benchmarks.machine", {"seconds": size.gemm_seconds}, size.threads)

    sides = {"peak": peak, **{name: side(module) for name, module in SIDES.items()}}
    runs = alternate(sides, size.seeds, show)
    peaks = {name: max(of_side(runs, "peak", name)) for name in ("bf16", "fp32")}
    ours, peer = (speed(runs, name, "examples") for name in SIDES)
    flops = flops_an_example(Path(data["data"]), model)
    return {
        "unit": "examples/s",
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "accuracy": both(runs, "accuracy", statistics.fmean),
        "peak_memory_bytes": both(runs, "peak_memory_bytes", max),
        "flops_share": ours * flops / peaks["bf16"],
        "peer_flops_share": peer * flops / peaks["bf16"],
        "gemm_flops_per_second": peaks,
        "settings": {**SETTINGS, "epochs": size.epochs, "precision": "bf16", "model": "minilm"},
        "runs": [{"side": run.side, "seed": run.seed, **run.values} for run in runs],
    }


def show(run: Run) -> str:
    """One run in one line."""
    values = run.values
    if run.side == "peak":
        return f"{values['bf16'] / 1e9:.0f} GFLOP/s in BF16, {values['fp32'] / 1e9:.0f} in FP32"
    rate = values["examples"] / values["seconds"]
    memory = values["peak_memory_bytes"] / 1e6
    return f"{rate:.1f} examples/s, accuracy {values['accuracy']:.4f}, {memory:.0f} MB"


def head_of(path: Path, lines: int | None, scratch: Path) -> Path:
    """The file, or a shorter one of its first lines in `scratch`."""
    if lines is None:
        return path
    short = scratch / path.name
    with path.open(encoding="utf-8") as whole:
        short.write_text(
            "".join(line for line, _ in zip(whole, range(lines), strict=False)), encoding="utf-8"
        )
    return short


def flops_an_example(data: Path, model: Path) -> float:
    """What one training example costs on average, forward and backward, without padding."""
    from bertmp.data.readers import read_examples
    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.config import BertConfig

    examples = read_examples(data)
    work = Work.of([len(row) for row in Tokenizer.load(model).encode(examples.texts)])
    labels = len(set(examples.labels or ()))
    return classifier_flops(BertConfig.load(model), work, labels) / work.texts
