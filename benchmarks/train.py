"""`make bench-train`: fine-tuning and pre-training against the usual way, side by side.

Both sides train the same model on the same data with the same rates, batch, steps and threads, in BF16 on
this machine's CPU. Every measured run is a process of its own, started by this one, ours and the peer's in
turn, one pair a seed. Speed is that of the training steps alone, waiting for batches included; memory is the
most that the process had resident from its start to its end, libraries, evaluation and saving included.

Writes `benchmarks/results/train.json`. `--quick` runs everything small, to see that it runs; it measures
nothing worth keeping and writes to `build/` instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ab_runs import say
from benchmarks.machine import provenance
from benchmarks.size import Size, quick
from benchmarks.subprocess_runner import REPOSITORY, ChildFailed
from benchmarks.train_finetune import finetune
from benchmarks.train_pretrain import pretrain
from bertmp.core.hardware import machine
from bertmp.core.io import write_json

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "bertmp")
TASKS = {"finetune": finetune, "pretrain": pretrain}


def table(results: dict[str, Any]) -> Any:
    """The figures as a Rich table."""
    from rich.table import Table

    shown = Table("", "ours", "peer", "ratio", title="Training against the usual way")
    for name in TASKS:
        if name not in results:
            continue
        result = results[name]
        quality = "accuracy" if "accuracy" in result else "loss"
        shown.add_row(
            f"{name}, {result['unit']}",
            *(f"{result[side]:.1f}" for side in ("ours", "peer")),
            f"{result['ratio']:.2f}",
        )
        shown.add_row(f"  {quality}", *(f"{result[quality][side]:.4f}" for side in ("ours", "peer")), "")
        memory = result["peak_memory_bytes"]
        shown.add_row(
            "  peak memory, MB",
            *(f"{memory[side] / 1e6:.0f}" for side in ("ours", "peer")),
            f"{memory['ours'] / memory['peer']:.2f}",
        )
        shares = (result["flops_share"], result["peer_flops_share"])
        peak = f"of {result['gemm_flops_per_second']['bf16'] / 1e9:.0f} GFLOP/s"
        shown.add_row("  share of the BF16 peak", *(f"{share:.1%}" for share in shares), peak)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="run everything small; measures nothing")
    parser.add_argument("--only", choices=list(TASKS), help="one of the two")
    parser.add_argument("--seeds", type=int, default=Size.seeds, help="runs of each side (default 3)")
    parser.add_argument("--threads", type=int, default=machine().cores, help="of every process")
    parser.add_argument("--out", type=Path, help="the results file")
    arguments = parser.parse_args()
    size = (
        quick(arguments.threads)
        if arguments.quick
        else Size(seeds=arguments.seeds, threads=arguments.threads)
    )
    default = "build/bench/train.json" if arguments.quick else "benchmarks/results/train.json"
    out = arguments.out or REPOSITORY / default
    results: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bertmp-bench-") as scratch:
            for name in [arguments.only] if arguments.only else TASKS:
                say(f"{name}:")
                results[name] = TASKS[name](size, Path(scratch))
    except ChildFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    results = {**results, "quick": arguments.quick, "threads": size.threads, **provenance(PACKAGES)}
    write_json(out, results)
    from rich.console import Console

    Console(soft_wrap=True).print(table(results))
    say(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
