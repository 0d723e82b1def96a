"""The options of `explain`."""

from __future__ import annotations

from pathlib import Path

from bertmp.core.options import Options, argument, option
from bertmp.core.progress import ProgressCallback, null_progress


class ExplainOptions(Options):
    """What `explain` reads."""

    # fmt: off
    graph: Path = argument(kw_only=False, metavar="GRAPH", help="An ONNX graph of any precision.")
    calibration: Path | None = option(
        default=None, metavar="FILE", help="Examples to run it on, for ranges and headroom.",
    )
    tokenizer: Path | None = option(
        default=None, metavar="DIR", help="Folder of the tokenizer; default: the graph's folder.",
    )
    # fmt: on
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with the batches done and in total."
    )
