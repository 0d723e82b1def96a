"""Fine-tuning as a user of this project does it: `bertmp.train`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bertmp.stopwatch import Stopwatch


def measure(
    data: str, eval_data: str, model: str, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> dict[str, Any]:
    """Trains, evaluates once at the end, writes the checkpoint; the time is that of the steps alone."""
    from bertmp import train
    from bertmp.data.readers import read_examples

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            "classification",
            Path(data),
            Path(model),
            Path(folder) / "run",
            eval_data=Path(eval_data),
            precision="bf16",
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_ratio=0.1,
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_rollbacks=0,  # saves no states for a rollback: the peer saves none
            seed=seed,
            eval_every=10**9,  # the last step is always followed by one
            progress=watch,
        )
    assert result.evaluation is not None
    return {
        "examples": len(read_examples(Path(data))) * epochs,
        "seconds": watch.seconds(),
        "accuracy": result.evaluation.figures["accuracy"],
    }
