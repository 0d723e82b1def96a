"""The options of `export`."""

from __future__ import annotations

from pathlib import Path

from bertmp.core.options import argument, option
from bertmp.export.precision.precision_options import PrecisionOptions


class ExportOptions(PrecisionOptions):
    """What `export` reads and writes."""

    # fmt: off
    checkpoint: Path = argument(kw_only=False, metavar="CHECKPOINT", help="A checkpoint folder.")
    out: Path = option(
        kw_only=False, metavar="BUNDLE",
        help="The bundle's folder; a bundle that is there is replaced when all is written.",
    )
    opset: int = option(default=18, minimum=18, maximum=23, help="ONNX operator set.")
    fp16: bool = option(
        default=True, flag="--fp16/--no-fp16", help="Whether to convert the graph to low precision.",
    )
    task: str | None = option(
        default=None,
        help="The head, where the checkpoint does not determine it: encoder, classification, regression, "
        "multi-label-classification, token-classification, pretraining, masked-lm or next-sentence.",
    )
    # fmt: on
