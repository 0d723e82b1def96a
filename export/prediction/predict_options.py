"""The options of `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bertmp.core.errors import InputError
from bertmp.core.options import argument, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.data_options import TextColumnOptions

Precision = Literal["fp32", "fp16", "bf16"]
COMPARE = "Comparison"


class PredictOptions(TextColumnOptions):
    """Which bundle answers which texts, and with what its answers are compared."""

    # fmt: off
    bundle: Path = argument(kw_only=False, metavar="BUNDLE", help="The bundle's folder.")
    data: Path = option(kw_only=False, metavar="FILE", help="A data file; its labels are not read.")
    out: Path = option(
        kw_only=False, metavar="FILE",
        help="Where the answers go, in the order of the texts: .jsonl, .tsv or .csv; replaced when all are "
        "there.")
    precision: Precision = option(default="fp32", help="The graph that answers.")
    threshold: float = option(
        default=0.5, minimum=0, maximum=1,
        help="The probability that a label must exceed, where a text may have several.")
    pooling: Literal["mean", "cls"] = option(
        default="mean", help="How a bare encoder's states become an embedding.")
    aggregation: Literal["simple", "first", "max"] = option(
        default="simple",
        help="What gets a label of an entity: a token (simple), or a word, with the label of its first token "
        "(first) or of its surest one (max).")
    against: Path | None = option(
        default=None, group=COMPARE, metavar="BUNDLE",
        help="Answer with this bundle, too, and write both answers and their difference.")
    against_precision: Precision | None = option(
        default=None, group=COMPARE,
        help="The other graph's precision; default: the same, or for the same bundle its other graph's.")
    # fmt: on
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with how many texts are answered."
    )

    def check(self) -> None:
        super().check()
        if self.against is None and self.against_precision is not None:
            what = "there is nothing to compare with"
            raise InputError(what, "--against-precision", "name a bundle with --against")
