"""`make bench-serve`: text in, label out over HTTP: `bertmp serve` against the servers that people write.

All serve the same weights on all cores of this machine and are asked the same texts by one compiled load
generator on the same cores. They take turns: in each round every system is started, asked by 1, 4 and 16
clients, and stopped. Every answer is compared with that of the same weights in process. In each round a
process of its own measures the machine's FP32 matrix product, which bounds what FP32 can reach. At the end
the load generator is compared with another, wrk, where that is installed, and versions are swapped under
16 clients.

Writes `benchmarks/results/serve.json`. `--quick` runs everything small, to see that it runs; it measures
nothing worth keeping and writes to `build/` instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ab_runs import Measure, alternate, say
from benchmarks.flops import TRAINING, Work, classifier_flops
from benchmarks.machine import provenance
from benchmarks.serving import summary
from benchmarks.serving.generators import GeneratorFailed, compare_generators
from benchmarks.serving.load import Questions, compare_first, load_generator, put_load
from benchmarks.serving.model import LABELS, make_checkpoint
from benchmarks.serving.swaps import swap_versions
from benchmarks.serving.systems import MODEL, Prepared, Start, SystemFailed, systems
from benchmarks.serving.texts import draw_texts, lengths
from benchmarks.subprocess_runner import REPOSITORY, ChildFailed, run_child
from bertmp.core.errors import BertmpError
from bertmp.core.hardware import machine
from bertmp.core.io import write_json
from bertmp.serve.load_test.load import Load

PACKAGES = (
    *("bertmp", "torch", "transformers", "tokenizers", "onnxruntime", "numpy"),
    *("fastapi", "uvicorn", "uvloop", "httptools", "tritonclient"),
)
DEPLOYED: Mapping[str, Mapping[str, Any]] = {"fp32": {"cpu_precision": "fp32"}, "bf16": {}}
"""Precision → the options of `deploy` with which a server computes in it."""
OTHER = "other-bundle"
"""The bundle that versions are swapped with."""
SHARE = 0.7
"""The open loop's rate, as a share of what the system answers under the most clients."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: how often each system is started and measured.
        seconds: the measured time of each number of clients.
        texts: how many are asked in turn.
        gemm_seconds: time for each matrix size of the peak measurement.
        swaps: how many versions are deployed under load.
    """

    rounds: int = 3
    seconds: float = 8.0
    texts: int = 512
    gemm_seconds: float = 1.0
    swaps: int = 20


QUICK = Size(rounds=1, seconds=1.0, texts=64, gemm_seconds=0.1, swaps=2)


def prepare(size: Size, scratch: Path) -> tuple[Prepared, Questions, dict[str, Any]]:
    """Makes the model and its texts, and deploys it; also what the results say about the texts."""
    from bertmp import deploy, download, export_checkpoint, parity
    from bertmp.data.tokenizer import Tokenizer

    folders = download(["minilm", *("trec", "sms-spam", "moviedialog")])
    tokenizer = Tokenizer.load(folders["minilm"])
    texts = draw_texts(folders, tokenizer, size.texts)
    config = make_checkpoint(folders["minilm"], scratch / "checkpoint", texts[:64])
    export_checkpoint(scratch / "checkpoint", scratch / "bundle", fp16=False)
    make_checkpoint(folders["minilm"], scratch / "other-checkpoint", texts[:64], seed=1)
    export_checkpoint(scratch / "other-checkpoint", scratch / OTHER, fp16=False)
    (scratch / "texts.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in texts[:64]))
    # Whether BF16 is served, parity decides.
    parity(scratch / "bundle", scratch / "texts.txt", allow_incomplete=("onnx-fp16", "onnx-fp16-emulated"))
    repositories = {}
    for precision, options in DEPLOYED.items():
        found = deploy(scratch / "bundle", MODEL, scratch / precision, **options)
        if found.precision == precision:
            repositories[precision] = scratch / precision
        else:
            say(f"{precision} is not measured: {found.notes[-1]}")
    prepared = Prepared(scratch / "checkpoint", scratch / "bundle", repositories, scratch)
    tokens = lengths(tokenizer, texts)
    work = Work.of(tokens)
    about = {
        "texts": len(texts),
        "tokens": {"least": min(tokens), "mean": sum(tokens) / len(tokens), "most": max(tokens)},
        "flops_per_text": classifier_flops(config, work, len(LABELS)) / (TRAINING / 2) / work.texts,
    }
    found = in_process(prepared, texts)
    return prepared, Questions(texts, dict(zip(texts, found["labels"], strict=True))), about


def in_process(prepared: Prepared, texts: Any) -> dict[str, Any]:
    """The labels and times of the texts without a server, on one thread, as a run of the server has."""
    arguments = {"bundle": str(prepared.bundle), "texts": list(texts), "threads": 1}
    return run_child("benchmarks.serving.in_process", arguments, threads=1)


def measure(size: Size, scratch: Path) -> dict[str, Any]:
    """The results file's content without its provenance.

    Raises:
        SystemFailed: a system did not start.
        ChildFailed: the measurement of the peak failed.
        GeneratorFailed: a request failed while the generators were compared.
        BertmpError: the model could not be made or deployed, or the load generator is missing.
    """
    tool = load_generator()
    say("the model and its texts (not measured)")
    prepared, questions, about = prepare(size, scratch)

    def side(start: Start) -> Measure:
        def run(seed: int) -> dict[str, Any]:
            with start() as endpoint:
                compare_first(endpoint, questions)
                loads = [Load(size.seconds, clients=clients) for clients in summary.CLIENTS]
                return {"loads": [put_load(tool, endpoint, questions, load) for load in loads]}

        return run

    def peak(seed: int) -> dict[str, Any]:
        return run_child("benchmarks.machine", {"seconds": size.gemm_seconds}, machine().cores)

    def alone(seed: int) -> dict[str, Any]:
        return in_process(prepared, questions.texts)

    started = systems(prepared)
    sides = {"peak": peak, "in process": alone, **{name: side(start) for name, start in started.items()}}
    runs = alternate(sides, size.rounds, summary.show)
    results = summary.results(runs, about["flops_per_text"])
    with started["bertmp"]() as endpoint:
        rate = round(SHARE * summary.most_texts_per_second(results), 1)
        measured = put_load(tool, endpoint, questions, Load(size.seconds, rate=rate))
        most = Load(size.seconds, clients=summary.CLIENTS[-1])
        generators = compare_generators(tool, endpoint, questions, most, size.rounds)
    return {
        **results,
        "at_70_percent": summary.open_loop(measured, results),
        "generators": generators,
        "swaps": swap_versions(
            prepared, scratch / OTHER, questions.texts, size.swaps, size.seconds, summary.CLIENTS[-1]
        ),
        "inputs": about,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="run everything small; measures nothing")
    parser.add_argument("--rounds", type=int, default=Size.rounds, help="of all systems (default 3)")
    parser.add_argument("--seconds", type=float, default=Size.seconds, help="of each load (default 8)")
    parser.add_argument("--out", type=Path, help="the results file")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else Size(arguments.rounds, arguments.seconds)
    default = "build/bench/serve.json" if arguments.quick else "benchmarks/results/serve.json"
    out = arguments.out or REPOSITORY / default
    try:
        with tempfile.TemporaryDirectory(prefix="bertmp-bench-serve-") as scratch:
            results = measure(size, Path(scratch))
    except (ChildFailed, SystemFailed, GeneratorFailed, BertmpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    write_json(out, {**results, "quick": arguments.quick, **provenance(PACKAGES)})
    from rich.console import Console

    Console(soft_wrap=True).print(summary.table(results))
    say(f"written to {out}")
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
