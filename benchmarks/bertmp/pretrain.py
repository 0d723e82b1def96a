"""Pre-training as a user of this project does it: `bertmp.train`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bertmp.stopwatch import Stopwatch


def measure(
    data: str,
    model: str,
    out: str,
    steps: int,
    unmeasured: int,
    batch_size: int,
    max_length: int,
    learning_rate: float,
    seed: int,
) -> dict[str, Any]:
    """Trains `steps` steps and writes the checkpoint to `out`; the speed leaves out the first `unmeasured`.

    The tokens are those of the metrics file: real ones, without padding. Neither preparing the corpus
    nor the peer's reading of it is timed; its memory counts.
    """
    from bertmp import train
    from bertmp.training.metrics import read_metrics

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(
            "pretraining",
            Path(data),
            Path(model),
            run,
            precision="bf16",
            steps=steps,
            batch_size=batch_size,
            max_length=max_length,
            short_seq_prob=0.0,  # the peer does not shorten pairs
            learning_rate=learning_rate,
            warmup_ratio=0.1,
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_rollbacks=0,  # saves no states for a rollback: the peer saves none
            seed=seed,
            log_every=1,
            progress=watch,
        )
        lines = read_metrics(run / "metrics.jsonl")
        (run / "final").rename(out)
    return {
        "tokens": tokens(lines, unmeasured),
        "seconds": watch.seconds(unmeasured),
        "losses": [line["loss"] for line in lines if "loss" in line],
    }


def tokens(lines: list[dict[str, Any]], unmeasured: int) -> int:
    """Tokens of all but the first steps, from a metrics file with one line per step."""
    total, before = 0.0, 0.0
    for line in lines:
        if "loss" not in line:
            continue
        if line["step"] > unmeasured:
            total += line["tokens_per_second"] * (line["seconds"] - before)
        before = line["seconds"]
    return round(total)
