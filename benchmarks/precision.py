"""`make bench-precision`: the planner against the other converters, all in one run.

Every conversion is a process of its own. On each graph all tools are held against the FP32 graph on the same
texts, TREC's test half and the extremes of length and padding, in ONNX Runtime on this machine's CPU.

Writes `benchmarks/results/precision.json`. What the tools convert is kept in `build/bench/precision/`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ab_runs import say
from benchmarks.converters.environment import NoEnvironment, peers_python
from benchmarks.converters.graphs import GRAPHS
from benchmarks.converters.score import facts
from benchmarks.converters.tools import Subject, row, tools
from benchmarks.machine import provenance
from benchmarks.subprocess_runner import REPOSITORY, ChildFailed, run_child
from bertmp.core.hardware import machine
from bertmp.core.io import write_json

PACKAGES = ("bertmp", "onnx", "onnxruntime", "onnxscript", "torch", "transformers", "numpy", "tensorrt-rtx")
PEER_PACKAGES = ("nvidia-modelopt", "onnxconverter-common", "onnx", "onnxruntime", "onnx-graphsurgeon")
WORK = REPOSITORY / "build" / "bench" / "precision"
TRAINED = REPOSITORY / "build" / "quickstart" / "run" / "final"
WIDTH = 124
"""Columns that the table needs; a pipe has 80."""
STRIDES = {"bert-base": 5}
"""Every how many of the 981 texts one is asked, where not all are: BERT-base takes seven times as long."""
FEW = 5
"""The same where every FP16 tensor is rounded."""


def trained(data: Path, model: Path) -> Path:
    """The quickstart's checkpoint; trained here, in the same way, where the quickstart has not run."""
    if (TRAINED / "model.safetensors").is_file():
        return TRAINED
    run = WORK / "run"
    if not (run / "final" / "model.safetensors").is_file():
        say("training the quickstart's model")
        command = ["train", "classification", "--data", str(data / "train.tsv"), "--model", str(model)]
        command += ["--eval-data", str(data / "test.tsv"), "--out", str(run), "--learning-rate", "1e-4"]
        subprocess.run([sys.executable, "-m", "bertmp", *command], cwd=REPOSITORY, check=True, stdout=2)
    return run / "final"


def prepare(name: str, checkpoint: Path, data: Path, threads: int) -> Subject:
    """Makes a graph and its FP32 answers."""
    say(f"{name}: making the graph")
    folder = WORK / name
    made = {"name": name, "checkpoint": str(checkpoint), "data": str(data / "train.tsv"), "out": str(folder)}
    run_child("benchmarks.converters.graphs", made, threads)
    graph, stride = folder / "model.onnx", STRIDES.get(name, 1)
    references = {every: folder / f"logits-{every}.npy" for every in (stride, FEW)}
    for every, out in references.items():
        asked = {"graph": str(graph), "data": str(data / "test.tsv"), "stride": every, "out": str(out)}
        run_child("benchmarks.converters.score", asked, threads)
    return Subject(name, graph, references[stride], stride, references[FEW], FEW, facts(graph))


def compare(graphs: Sequence[str], only: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """Every tool on every graph: the rows."""
    from bertmp import download

    folders = download(["minilm", "trec"])
    data = folders["trec"]
    checkpoint = trained(data, folders["minilm"])
    rows = []
    for name in graphs:
        subject = prepare(name, checkpoint, data, threads)
        with tempfile.TemporaryDirectory(prefix="bertmp-bench-") as scratch:
            for tool in tools(data / "train.tsv"):
                if only and tool.name not in only:
                    continue
                rows.append(row(tool, subject, data / "test.tsv", Path(scratch), threads))
                say(f"  {tool.name}: {rows[-1].get('error') or 'done'}")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows as a Rich table, a graph after the other."""
    from rich.table import Table

    shown = Table(title="FP16 conversion: the planner against other converters")
    for column in ("graph", "tool"):
        shown.add_column(column)
    for column in ("size", "casts", "max error", "mean", "flips", "rounded", "flips", "seconds"):
        shown.add_column(column, justify="right")
    shown.add_column("loads")
    before = ""
    for found in rows:
        if before and found["graph"] != before:
            shown.add_section()
        rounded = found.get("rounded", {})
        shown.add_row(
            found["graph"] if found["graph"] != before else "",
            found["tool"],
            _figure(found["size_ratio"], "{:.3f}"),
            _figure(found["casts"], "{}"),
            _error(found),
            _figure(found["mean_error"], "{:.1e}"),
            _figure(found["label_flips"], "{}"),
            _error(rounded),
            _figure(rounded.get("label_flips"), "{}"),
            _figure(found["seconds"], "{:.2f}"),
            "yes" if found["loads"] else "no",
        )
        before = found["graph"]
    return shown


def _error(scores: dict[str, Any]) -> str:
    return "not finite" if scores.get("not_finite") else _figure(scores.get("max_error"), "{:.1e}")


def _figure(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)


def complaints(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for every row that does not load."""
    return [f"{found['graph']}, {found['tool']}: {found['error']}" for found in rows if "error" in found]


def peer_versions() -> dict[str, str]:
    """What the peers' environment has installed."""
    code = (
        "import sys, json; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(peers_python()), "-c", code, *PEER_PACKAGES], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--graph", action="append", choices=list(GRAPHS), help="one of the graphs; repeatable"
    )
    parser.add_argument("--tool", action="append", help="one of the tools, by its name; repeatable")
    parser.add_argument("--threads", type=int, default=machine().cores, help="of every process")
    parser.add_argument("--out", type=Path, help="the results file")
    arguments = parser.parse_args()
    partial = bool(arguments.graph or arguments.tool)
    default = "build/bench/precision.json" if partial else "benchmarks/results/precision.json"
    out = arguments.out or REPOSITORY / default
    try:
        versions = peer_versions()
        rows = compare(arguments.graph or list(GRAPHS), arguments.tool or (), arguments.threads)
    except (ChildFailed, NoEnvironment, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    results = {"rows": rows, "threads": arguments.threads, **provenance(PACKAGES), "peer_versions": versions}
    write_json(out, results)
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table(rows))
    for line in complaints(rows):
        console.print(line, markup=False)
    say(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
