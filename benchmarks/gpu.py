"""`make bench-gpu`: BERT-base and BERT-large in FP32, TF32, BF16 and FP16 on one CUDA GPU.

Needs no network, no data and no installation: random weights, random texts, MLM and NSP, FP32 master
weights and AdamW. Within a model and length every precision trains on the same texts in the same batch,
with attention as matrix products and a softmax: FP32 has no other kernel, and so a ratio to FP32 is the
precision's alone. Torch's variable-length attention, which FP16 and BF16 have and training uses
(attention dropout is 0), is measured in rows of its own, against the same precision without it. The
card's peak is that of large matrix products in the same run, and the data sheet's where the card is
known.

Writes `benchmarks/results/gpu.json`. Exit code 4 without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ab_runs import say
from benchmarks.gpu_specs import datasheet
from benchmarks.machine import gemm_flops, gpu_missing, provenance
from benchmarks.subprocess_runner import REPOSITORY
from bertmp.core.io import write_json
from bertmp.model.config import BertConfig

if TYPE_CHECKING:
    import torch

    from benchmarks.steps import Attention

MATMUL: Attention = "matmul"
VARLEN: Attention = "varlen"
"""Kinds of attention: matrix products and a softmax, or torch's variable-length kernel."""

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors")
SECONDS = 400
"""After which no further measurement is begun: the whole takes less than 8 minutes on any card."""
GOAL = {"speed": 2.0, "memory": 0.5}
"""What mixed precision is known for: at least so many times FP32's speed, at most so much of its memory."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        models: name → shape.
        shapes: tokens a text and texts a step, most first for cards that have the memory.
        unmeasured, measured: steps.
        sizes, gemm_seconds: of the matrix products that give the peak.
    """

    models: dict[str, BertConfig]
    shapes: Sequence[tuple[int, int]] = ((128, 64), (512, 16))
    unmeasured: int = 5
    measured: int = 20
    sizes: Sequence[int] = (4096, 8192)
    gemm_seconds: float = 1.0


def full() -> Plan:
    """BERT-base and BERT-large (Devlin et al. 2019) at the lengths of both phases of pre-training."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    return Plan(
        {
            "bert-base": BertConfig(attention_probs_dropout_prob=0.0),
            "bert-large": BertConfig(**large, intermediate_size=4096, attention_probs_dropout_prob=0.0),  # type: ignore[arg-type]
        }
    )


def peaks(device: torch.device, plan: Plan) -> dict[str, float]:
    """FLOP/s of large matrix products in every precision that the device has."""
    import torch

    types = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    found = {}
    for precision in available(device):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        found[precision] = gemm_flops(device, types[precision], plan.sizes, plan.gemm_seconds)
    torch.set_float32_matmul_precision("highest")
    return found


def available(device: torch.device) -> list[str]:
    """The precisions that the device multiplies in hardware; on the CPU, for rehearsals, all of them."""
    import torch

    from benchmarks.steps import PRECISIONS

    modern = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    return [precision for precision in PRECISIONS if modern or precision in ("fp32", "fp16")]


def rows(device: torch.device, plan: Plan, peak: dict[str, float], until: float) -> Iterator[dict[str, Any]]:
    """One row a model, length, precision and kind of attention; `left_out` says why one has no figures."""
    for name, config in plan.models.items():
        for length, batch in plan.shapes:
            done: dict[str, dict[str, Any]] = {}  # precision → its figures with attention as matrix products
            for precision, attention in variants(device, config):
                row: dict[str, Any] = {
                    "model": name,
                    "length": length,
                    "precision": precision,
                    "attention": attention,
                }
                if time.monotonic() > until:
                    yield {**row, "left_out": f"{SECONDS} s were over"}
                    continue
                figures, batch = measure(config, precision, attention, device, length, batch, plan)
                if "left_out" not in figures:
                    figures["share_of_peak"] = figures["flops_per_second"] / peak[precision]
                    if attention == MATMUL:
                        done[precision] = figures
                        figures |= against(done.get("fp32"), figures, "fp32")
                    else:
                        figures |= against(done.get(precision), figures, MATMUL)
                yield {**row, **figures}


def variants(device: torch.device, config: BertConfig) -> Iterator[tuple[str, Attention]]:
    """Every precision with attention as matrix products, then those that have the other kernel with it."""
    import torch

    from bertmp.model import packed

    types, found = {"bf16": torch.bfloat16, "fp16": torch.float16}, available(device)
    yield from ((precision, MATMUL) for precision in found)
    for precision in (one for one in found if one in types):
        query = torch.empty(0, dtype=types[precision], device=device)
        if packed.has_varlen_kernel(query, config.hidden_size // config.num_attention_heads):
            yield precision, VARLEN


def against(base: dict[str, Any] | None, figures: dict[str, Any], name: str) -> dict[str, float]:
    """Speed and memory as multiples of those of the row `name`; nothing where that has no figures."""
    pairs = {f"speed_to_{name}": "tokens_per_second", f"memory_to_{name}": "peak_memory_bytes"}
    return {ratio: figures[of] / base[of] for ratio, of in pairs.items()} if base else {}


def measure(
    config: BertConfig,
    precision: str,
    attention: Attention,
    device: torch.device,
    length: int,
    batch: int,
    plan: Plan,
) -> tuple[dict[str, Any], int]:
    """The figures, and the batch they were measured with: where FP32 does not fit, half of it and so on."""
    import torch

    from benchmarks.steps import measure_steps
    from bertmp.training.distributed import DistributedContext

    while True:
        try:
            found = measure_steps(
                config,
                precision,
                DistributedContext(device),
                length,
                batch,
                plan.unmeasured,
                plan.measured,
                attention,
            )
        except torch.OutOfMemoryError:
            if precision != "fp32" or batch == 1:
                return {"batch": batch, "left_out": "out of memory"}, batch
            batch //= 2
            continue
        return {
            "batch": batch,
            "examples_per_second": found.examples / found.seconds,
            "tokens_per_second": found.tokens / found.seconds,
            "flops_per_second": found.flops / found.seconds,
            "peak_memory_bytes": found.peak_memory_bytes,
            "last_loss": found.losses[-1],
        }, batch


def report(device: torch.device, plan: Plan) -> dict[str, Any]:
    """Everything that the results file holds, measured now."""
    import torch

    until = time.monotonic() + SECONDS
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none: a rehearsal on the CPU"
    peak, sheet = peaks(device, plan), datasheet(card)
    say(f"{card}: " + ", ".join(f"{name} {value / 1e12:.1f} TFLOP/s" for name, value in peak.items()))
    measured = []
    for row in rows(device, plan, peak, until):
        if "left_out" not in row and row["precision"] in sheet:
            row["share_of_datasheet"] = row["flops_per_second"] / sheet[row["precision"]]
        measured.append(row)
        say(line(row))
    return {
        "card": card,
        "gemm_flops_per_second": peak,
        "datasheet_flops_per_second": sheet,
        "rows": measured,
        "goal": {**GOAL, "met": met(measured)},
    }


def met(measured: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Whether each FP16 and BF16 row with FP32's attention reaches the goal in speed and in memory."""
    return {
        f"{row['model']}, length {row['length']}, {row['precision']}": (
            row["speed_to_fp32"] >= GOAL["speed"] and row["memory_to_fp32"] <= GOAL["memory"]
        )
        for row in measured
        if row["precision"] in ("bf16", "fp16") and "speed_to_fp32" in row
    }


def line(row: dict[str, Any]) -> str:
    """One row in one line."""
    start = f"{row['model']:10} length {row['length']:3} {row['precision']}, attention {row['attention']}: "
    if "left_out" in row:
        return start + f"left out, {row['left_out']}"
    figures = (
        f"batch {row['batch']}, {row['examples_per_second']:.1f} examples/s, "
        f"{row['tokens_per_second']:.0f} tokens/s, {row['share_of_peak']:.0%} of the peak, "
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB"
    )
    for name, whose in (("fp32", "FP32's"), (MATMUL, "the matrix products'")):
        if f"speed_to_{name}" in row:
            speed, memory = row[f"speed_to_{name}"], row[f"memory_to_{name}"]
            figures += f"; {speed:.2f} times {whose} speed, {memory:.2f} of its memory"
    return start + figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "gpu.json")
    arguments = parser.parse_args()
    if missing := gpu_missing():
        print(missing, file=sys.stderr)
        return 4
    import torch

    try:
        results = report(torch.device("cuda", 0), full())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    write_json(arguments.out, {**results, **provenance(PACKAGES)})
    for row in results["rows"]:
        print(line(row))
    say(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
