"""The options of `export`, `convert` and `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bertmp.core.errors import InputError
from bertmp.core.options import Options, argument, declared_options, option
from bertmp.core.progress import ProgressCallback, null_progress
from bertmp.data.data_options import TextColumnOptions

Target = Literal["fp16", "bf16"]
HEADROOM = 4.0
PRECISION = "Precision"


class PrecisionOptions(TextColumnOptions):
    """How the precision of a graph's nodes is chosen."""

    # fmt: off
    precision: Target = option(default="fp16", group=PRECISION, formerly="to", help="The low precision.")
    keep_fp32: Sequence[str] = option(
        default=(), group=PRECISION, metavar="PATTERN",
        help="Keep in FP32 the nodes of this name, operator or module; * is allowed.",
    )
    allow_fp16: Sequence[str] = option(
        default=(), group=PRECISION, metavar="PATTERN",
        help="Let these nodes run in FP16 although they normalise, reduce, are a softmax or read small "
        "weights.",
    )
    headroom: float = option(
        default=HEADROOM, group=PRECISION,
        help="How many times the largest value of a tensor must fit into the range of the low precision.",
    )
    calibration: Path | None = option(
        default=None, group=PRECISION, metavar="FILE",
        help="Examples to measure ranges and errors on; a few are drawn from it. Without it, ranges are "
        "measured on inputs made from the vocabulary.",
    )
    max_error: float | None = option(
        default=None, minimum=0, group=PRECISION,
        help="The largest change of an output value on the calibration examples; nodes are promoted to FP32 "
        "to meet it; exit code 1 where it cannot be met.",
    )
    plan: Path | None = option(
        default=None, group=PRECISION, metavar="FILE",
        help="Apply this plan, perhaps edited, instead of making one.",
    )
    # fmt: on
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with each step of the work."
    )

    def check(self) -> None:
        super().check()
        if self.max_error is not None and self.calibration is None:
            what = "an error is measured on examples, and there are none"
            raise InputError(what, "--max-error", "add --calibration FILE")
        for declared in declared_options(PrecisionOptions) if self.plan else ():
            free = declared.info.group != PRECISION or declared.name in ("plan", "calibration")
            if not free and getattr(self, declared.name) != declared.default:
                what = "the plan has decided that already"
                raise InputError(what, declared.flag, "leave it out, or leave out --plan")


class GraphInputOptions(Options):
    """How examples become the inputs of a graph of any exporter."""

    # fmt: off
    tokenizer: Path | None = option(
        default=None, metavar="DIR", help="Folder of the tokenizer; default: the graph's folder.",
    )
    inputs: Sequence[str] = option(
        default=(), flag="--input", metavar="ROLE=NAME",
        help="The role (ids, mask, types or positions) of an input that its name does not tell.",
    )
    # fmt: on


class ConvertOptions(PrecisionOptions, GraphInputOptions):
    """What `convert` reads and writes."""

    # fmt: off
    source: Path = argument(kw_only=False, metavar="IN.onnx", help="An FP32 graph.")
    target: Path = argument(kw_only=False, metavar="OUT.onnx", help="The mixed-precision graph to write.")
    plan_file: Path | None = option(
        default=None, on_command_line=False,
        help="Where the plan is written; default: TARGET.precision-plan.json.",
    )
    # fmt: on

    def check(self) -> None:
        super().check()
        if self.inputs and self.plan is not None and self.calibration is None:
            what = "inputs are named for examples, and with a plan nothing is measured"
            raise InputError(what, "--input", "add --calibration FILE, or leave it out")


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


class ExplainOptions(TextColumnOptions, GraphInputOptions):
    """What `explain` reads."""

    # fmt: off
    graph: Path = argument(
        kw_only=False, metavar="GRAPH|BUNDLE", help="An ONNX graph of any precision, or a bundle's.",
    )
    calibration: Path | None = option(
        default=None, metavar="FILE",
        help="Examples to run it on, for ranges and headroom; default: inputs made from the vocabulary.",
    )
    # fmt: on
    progress: ProgressCallback = option(
        default=null_progress, on_command_line=False, help="Called with the batches done and in total."
    )
