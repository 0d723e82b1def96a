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
        steps, unmeasured: pre-training steps in all, and how many of the first the speed leaves out.
        judged: batches that the judge of pre-training looks at.
        gemm_seconds: for each matrix size of the peak.
        threads: of every process.
    """

    seeds: int = 3
    examples: int | None = None
    epochs: int = 3
    steps: int = 60
    unmeasured: int = 10
    judged: int = 16
    gemm_seconds: float = 1.0
    threads: int = 1


def quick(threads: int) -> Size:
    """Enough to see that every part runs."""
    return Size(1, examples=256, epochs=1, steps=6, unmeasured=2, judged=1, gemm_seconds=0.1, threads=threads)
