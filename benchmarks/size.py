"""How much the training benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        seeds: runs of each side.
        examples: fine-tuning examples; all of them where None.
        epochs: passes over these.
        steps, unmeasured: all pre-training steps, and how many of the first ones the speed leaves out.
        held_out_batches: batches of the held-out loss of pre-training.
        gemm_seconds: time for each matrix size of the peak measurement.
        threads: of every process.
    """

    seeds: int = 3
    examples: int | None = None
    epochs: int = 3
    steps: int = 60
    unmeasured: int = 10
    held_out_batches: int = 16
    gemm_seconds: float = 1.0
    threads: int = 1


def quick(threads: int) -> Size:
    """Enough to see that every part runs."""
    return Size(
        1,
        examples=256,
        epochs=1,
        steps=6,
        unmeasured=2,
        held_out_batches=1,
        gemm_seconds=0.1,
        threads=threads,
    )
