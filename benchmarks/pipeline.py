"""`make bench-pipeline`: what each stage from a checkpoint to an engine takes, in time and in memory.

The model has BERT-base's sizes, or BERT-large's with `--model bert-large`, and random weights drawn as its
paper draws them: time and memory depend on sizes alone. Each stage is one command, run as a user runs it, in
a process of its own; its time includes Python's start, its memory everything that it starts.

Then parity runs on 100,000 texts with a small model, where what it does beside its stages shows most.

Writes `benchmarks/results/pipeline.json`. The goals are 60 s and 6 GiB for BERT-base on two cores, and a
parity run that takes at most 1.2 times as long as its stages.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ab_runs import say
from benchmarks.machine import provenance
from benchmarks.memory import Measured, run_measured
from benchmarks.subprocess_runner import REPOSITORY
from bertmp.core.io import write_json
from bertmp.model.config import BertConfig

PACKAGES = ("bertmp", "torch", "onnx", "onnxscript", "tensorrt", "tensorrt-rtx", "numpy")
LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
MODELS = {
    "bert-base": BertConfig(labels=LABELS),
    "bert-large": BertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        labels=LABELS,
    ),
}
GOALS = {"bert-base": {"seconds": 60.0, "peak_memory_bytes": 6 << 30}}


PARITY_TEXTS = 100_000
PARITY_MODEL = BertConfig(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=64,
    labels=LABELS,
)
"""Of a narrower one, reading and tokenizing the texts takes as long as a stage."""
PARITY_GOAL = 1.2
"""A parity run's time over the sum of its stages'."""


class StageFailed(Exception):
    """A command of the pipeline ended with an error; the message is the end of what it printed."""


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: of the stage in the results.
        arguments: of `bertmp`, for a working folder that has `checkpoint` in it.
    """

    name: str
    arguments: Callable[[Path], list[str]]


STAGES = (
    Stage("export", lambda at: ["export", f"{at}/checkpoint", "--out", f"{at}/bundle", "--no-fp16"]),
    Stage("convert", lambda at: ["convert", f"{at}/bundle/model.onnx", f"{at}/bundle/model.fp16.onnx"]),
    Stage("build-engine", lambda at: ["build-engine", f"{at}/bundle/model.fp16.onnx"]),
)


def make_checkpoint(folder: Path, config: BertConfig) -> None:
    """A classifier with random weights, and a vocabulary of the configured size."""
    import torch

    from bertmp.data.tokenizer import Tokenizer
    from bertmp.model.bert import initialise
    from bertmp.model.checkpoint import save_checkpoint
    from bertmp.model.heads import SequenceClassifier

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = (f"w{number}" for number in range(config.vocab_size - len(special)))
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "vocab.txt").write_text("".join(f"{word}\n" for word in (*special, *words)))
        tokenizer = Tokenizer.load(Path(temporary), config.max_position_embeddings)
        model = SequenceClassifier(config)
        initialise(model, config, torch.Generator().manual_seed(0))
        save_checkpoint(folder, model, config, tokenizer)


def run_stage(stage: Stage, folder: Path) -> tuple[Measured, dict[str, Any]]:
    """Runs one stage; how it went, and the object that it printed.

    Raises:
        StageFailed: a command failed.
    """
    command = [sys.executable, "-m", "bertmp", *stage.arguments(folder), "--json"]
    done = run_measured(command, {"PYTHONPATH": str(REPOSITORY)})
    if done.code:
        raise StageFailed(f"{stage.name} ended with {done.code}: {done.stderr[-2000:]}")
    return done, json.loads(done.stdout)


def measure_parity(folder: Path) -> dict[str, Any]:
    """A parity run's time beside that of its stages; `folder` is made.

    Raises:
        StageFailed: a command failed.
    """
    say(f"parity on {PARITY_TEXTS} texts: making a small bundle (not measured)")
    folder.mkdir()
    make_checkpoint(folder / "checkpoint", PARITY_MODEL)
    draw = random.Random(0)
    with (folder / "texts.txt").open("w", encoding="utf-8") as stream:
        for _ in range(PARITY_TEXTS):
            words = draw.choices(range(10_000), k=draw.randint(3, 20))
            stream.write(" ".join(f"w{number}" for number in words) + "\n")
    # How far random weights are off is not the question here.
    gates = (f"[onnx-{stage}]\nmax_error = 1.0\n" for stage in ("fp32", "fp16", "fp16-emulated"))
    (folder / "gates.toml").write_text("".join(gates), encoding="utf-8")
    run_stage(Stage("export", lambda at: ["export", f"{at}/checkpoint", "--out", f"{at}/bundle"]), folder)
    files = ("--data", f"{folder}/texts.txt", "--gates", f"{folder}/gates.toml")
    done, report = run_stage(Stage("parity", lambda at: ["parity", f"{at}/bundle", *files]), folder)
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"] if stage["seconds"]}
    ratio = report["seconds"] / sum(stages.values())
    say(f"  {'parity':12} {done.seconds:6.1f} s, {ratio:.2f} times as long as its stages")
    return {
        "texts": report["data"]["texts"],
        "seconds": report["seconds"],
        "stages": stages,
        "ratio_stages": ratio,
        "peak_memory_bytes": done.peak_memory_bytes,
        "goal": {"ratio_stages": PARITY_GOAL, "met": ratio <= PARITY_GOAL},
    }


def measure(name: str, config: BertConfig, folder: Path) -> dict[str, Any]:
    """All stages one after the other; the results file's content without its provenance.

    Raises:
        StageFailed: a command failed.
    """
    say(f"{name}: making the checkpoint (not measured)")
    make_checkpoint(folder / "checkpoint", config)
    seconds, memory, results = {}, {}, {}
    for stage in STAGES:
        done, results[stage.name] = run_stage(stage, folder)
        seconds[stage.name], memory[stage.name] = done.seconds, done.peak_memory_bytes
        say(f"  {stage.name:12} {done.seconds:6.1f} s {done.peak_memory_bytes / 2**20:8.0f} MiB")
    engine = results["build-engine"]
    return {
        "model": name,
        "seconds": seconds,
        "peak_memory_bytes": memory,
        "total_seconds": sum(seconds.values()),
        "builder": f"{engine['builder']} {engine['builder_version']}",
        "profiles": engine["profiles"],
        "layers": engine["layers"],
        "verified": engine["verified"],
        "engine_bytes": engine["engine_bytes"],
        "graph_bytes": results["convert"]["bytes"],
        "casts": results["convert"]["casts"],
        "parity": measure_parity(folder / "parity"),
    }


def against_goal(results: dict[str, Any]) -> dict[str, Any]:
    """The goal and whether it is met; nothing for a model that has none."""
    goal = GOALS.get(results["model"])
    if goal is None:
        return {}
    peak = max(results["peak_memory_bytes"].values())
    met = results["total_seconds"] <= goal["seconds"] and peak <= goal["peak_memory_bytes"]
    return {"goal": {**goal, "met": met}}


def table(results: dict[str, Any]) -> Any:
    """The figures as a Rich table."""
    from rich.table import Table

    shown = Table(
        "stage", "seconds", "peak memory, MiB", title=f"From checkpoint to engine: {results['model']}"
    )
    for name, seconds in results["seconds"].items():
        shown.add_row(name, f"{seconds:.1f}", f"{results['peak_memory_bytes'][name] / 2**20:.0f}")
    peak = max(results["peak_memory_bytes"].values())
    shown.add_row("total", f"{results['total_seconds']:.1f}", f"{peak / 2**20:.0f}")
    parity = results["parity"]
    shown.caption = (
        f"parity of a small model on {parity['texts']} texts: {parity['seconds']:.1f} s, "
        f"{parity['ratio_stages']:.2f} times as long as its stages"
    )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=tuple(MODELS), default="bert-base")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/pipeline.json")
    arguments = parser.parse_args()
    suffix = "" if arguments.model == "bert-base" else f"-{arguments.model}"
    out = arguments.out or REPOSITORY / "benchmarks" / "results" / f"pipeline{suffix}.json"
    try:
        with tempfile.TemporaryDirectory(prefix="bertmp-pipeline-") as folder:
            results = measure(arguments.model, MODELS[arguments.model], Path(folder))
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    results = {**results, **against_goal(results), **provenance(PACKAGES)}
    write_json(out, results)
    from rich.console import Console

    Console().print(table(results))
    say(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
