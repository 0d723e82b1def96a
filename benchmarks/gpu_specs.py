"""What NVIDIA states for its cards, dense, in TFLOP/s; FP16 with FP32 accumulation.

Not checked against the data sheets yet: compare a card's row with its sheet before a share of it is
quoted. The share of the peak that is measured in the same run needs no such table.
"""

from __future__ import annotations

from collections.abc import Mapping

Peaks = Mapping[str, float]


def _peaks(half: float, tf32: float | None, fp32: float, bf16: bool = True) -> Peaks:
    values = {"fp16": half, "fp32": fp32}
    return {**values, **({"bf16": half} if bf16 else {}), **({"tf32": tf32} if tf32 else {})}


CARDS: tuple[tuple[str, Peaks], ...] = (
    ("B200", _peaks(2250.0, 1125.0, 75.0)),
    ("H200", _peaks(989.4, 494.7, 66.9)),
    ("H100 PCIe", _peaks(756.5, 378.0, 51.2)),
    ("H100 NVL", _peaks(835.0, 417.5, 60.0)),
    ("H100", _peaks(989.4, 494.7, 66.9)),
    ("A100", _peaks(312.0, 156.0, 19.5)),
    ("A30", _peaks(165.0, 82.0, 10.3)),
    ("A10G", _peaks(70.0, 35.0, 31.2)),
    ("L40S", _peaks(362.0, 183.0, 91.6)),
    ("L4", _peaks(121.0, 60.0, 30.3)),
    ("V100", _peaks(125.0, None, 15.7, bf16=False)),
    ("T4", _peaks(65.0, None, 8.1, bf16=False)),
)
"""Substring of the driver's name → peaks; the first that fits counts, so longer names come first."""


def datasheet(name: str) -> dict[str, float]:
    """FLOP/s by precision of the card with this name; empty where it is not listed."""
    words = name.split()
    for card, peaks in CARDS:
        parts = card.split()
        # "L4" is no "L40": the first word must be a word of the name, or begin one before a hyphen.
        if any(word.split("-")[0] == parts[0] for word in words) and card.split()[-1] in name:
            return {precision: value * 1e12 for precision, value in peaks.items()}
    return {}
