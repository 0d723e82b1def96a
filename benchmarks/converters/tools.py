"""The converters that are compared, and one row of the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.converters.environment import peers_python
from benchmarks.converters.score import facts
from benchmarks.subprocess_runner import ChildFailed, run_child


@dataclass(frozen=True)
class Tool:
    """A converter.

    Attributes:
        name: as the table shows it.
        module: its `measure(source, target, **options)` converts.
        own_environment: whether it runs on the peers' packages instead of this project's.
        options: further arguments.
    """

    name: str
    module: str
    own_environment: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A graph that every tool converts.

    Attributes:
        name: as the table shows it.
        graph: the FP32 graph.
        reference: its logits, as score.py keeps them.
        stride: every how many texts one is asked.
        few_reference, few_stride: the same for the slower scoring with every FP16 tensor rounded.
        size: `facts` of the FP32 graph.
    """

    name: str
    graph: Path
    reference: Path
    stride: int
    few_reference: Path
    few_stride: int
    size: Mapping[str, Any]


def tools(calibration: Path) -> list[Tool]:
    """Ours, without and with texts to calibrate on, and the peers, each as its documentation shows it."""
    return [
        Tool("bertmp", "benchmarks.bertmp.convert"),
        Tool("bertmp, calibrated", "benchmarks.bertmp.convert", options={"calibration": str(calibration)}),
        Tool("ModelOpt AutoCast", "benchmarks.baselines.autocast", own_environment=True),
        Tool("onnxconverter-common", "benchmarks.baselines.onnxconverter", own_environment=True),
        Tool("onnxruntime.transformers", "benchmarks.baselines.onnxruntime_float16"),
    ]


def row(tool: Tool, subject: Subject, data: Path, scratch: Path, threads: int) -> dict[str, Any]:
    """Converts and scores. A failure gives a row, too, with the first line of its message."""
    target = scratch / "converted" / "model.onnx"
    target.parent.mkdir(exist_ok=True)
    for left in target.parent.iterdir():
        left.unlink()
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "config.json"):
        if (source := subject.graph.parent / name).is_file():
            (target.parent / name).symlink_to(source)
    found: dict[str, Any] = {
        **dict.fromkeys(("size_ratio", "casts", "max_error", "mean_error", "label_flips", "seconds")),
        "loads": False,
    }
    try:
        found |= _convert(tool, subject, target, threads)
        size = facts(target)
        found |= {"size_ratio": size["bytes"] / subject.size["bytes"], "casts": size["casts"]}
        found |= _without_memory(
            run_child("benchmarks.converters.load_check", {"graph": str(target)}, threads)
        )
        scoring = {"graph": str(target), "data": str(data), "out": str(scratch / "logits.npy")}
        asked = {"stride": subject.stride, "reference": str(subject.reference)}
        found |= _score({**scoring, **asked}, threads)
        asked = {"stride": subject.few_stride, "reference": str(subject.few_reference)}
        found["rounded"] = _score({**scoring, **asked, "rounded": True}, threads)
    except ChildFailed as error:
        found |= {"loads": False, "error": found.get("error") or _last_line(str(error))}
    return {"graph": subject.name, "tool": tool.name, **found}


def _convert(tool: Tool, subject: Subject, target: Path, threads: int) -> dict[str, Any]:
    arguments = {"source": str(subject.graph), "target": str(target), **tool.options}
    if tool.own_environment:
        return run_child(tool.module, arguments, threads, peers_python())
    return run_child(tool.module, arguments, threads)


def _score(arguments: Mapping[str, Any], threads: int) -> dict[str, Any]:
    return _without_memory(run_child("benchmarks.converters.score", arguments, threads))


def _without_memory(result: dict[str, Any]) -> dict[str, Any]:
    """The memory of scoring is not reported."""
    return {key: value for key, value in result.items() if key != "peak_memory_bytes"}


def _last_line(text: str) -> str:
    """What went wrong: a Python traceback ends with it."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300]
