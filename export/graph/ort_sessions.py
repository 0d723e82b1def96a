"""ONNX Runtime sessions: the one place of the export that opens them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bertmp.core.errors import InputError, MissingComponent, short_message
from bertmp.export.graph.weights import WeightlessGraph

Feed = Mapping[str, np.ndarray]
Provider = str | tuple[str, dict[str, str]]

CPU = "CPUExecutionProvider"
Optimization = Literal["disable_all", "basic", "extended", "all"]

_EXTERNAL_FROM = 2**30
"""Graphs of more bytes keep their weights in a second file when ONNX Runtime writes them optimised."""


def onnxruntime_module() -> Any:
    """The module `onnxruntime`.

    Raises:
        MissingComponent: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingComponent(
            "ONNX Runtime is not installed", str(error), "pip install 'bertmp[cpu]' or 'bertmp[gpu]'"
        ) from error
    return onnxruntime


_CUDA: Provider = ("CUDAExecutionProvider", {"use_tf32": "0"})
"""TF32 rounds the factors of a product to 10 bits: an FP32 graph would no longer be one."""


def best_providers() -> list[Provider]:
    """CUDA without TF32 where ONNX Runtime can use it, else the CPU.

    Raises:
        MissingComponent: ONNX Runtime is not installed.
    """
    has_cuda = _CUDA[0] in onnxruntime_module().get_available_providers()
    return [_CUDA, CPU] if has_cuda else [CPU]


def arithmetic_note(precision: str, provider: str) -> str:
    """How a provider computes a graph of this precision where that is not in it; empty otherwise."""
    if precision == "fp32" or provider != CPU or platform.machine() not in ("x86_64", "AMD64"):
        return ""
    low = precision.upper()
    return f"{low} weights with FP32 arithmetic: the x86 CPU provider has no {low} kernels and casts"


def open_session(
    graph: WeightlessGraph | Path,
    *,
    providers: Sequence[Provider] = (CPU,),
    optimization: Optimization = "all",
    optimized: Path | None = None,
    frugal: bool = False,
) -> Any:
    """An ONNX Runtime session.

    Args:
        graph: a file, or a graph in memory; the session makes no copy of its large weights, and together they
            may exceed protobuf's 2 GB.
        providers: in order of preference.
        optimization: ONNX Runtime's level. Beyond `basic`, nodes are fused.
        optimized: where to write the optimised graph.
        frugal: nodes run as soon as they can, so that tensors are released early, and no block of memory for
            a whole run is planned: for few runs of many shapes.

    Raises:
        MissingComponent: ONNX Runtime is not installed.
        InputError: it does not load the graph.
    """
    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    level = f"ORT_ENABLE_{optimization.upper()}" if optimization != "disable_all" else "ORT_DISABLE_ALL"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if frugal:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
    if isinstance(graph, Path):
        model, name = str(graph), str(graph)
        if optimized is not None and graph.stat().st_size > _EXTERNAL_FROM:
            key = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(key, f"{optimized.name}.data")
    else:
        model, name = graph.model.SerializeToString(), graph.model.graph.name
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), values)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # the runtime's own exceptions share no other base
        raise InputError("ONNX Runtime does not load the graph", name, short_message(error)) from error


def open_measuring_session(graph: WeightlessGraph) -> Any:
    """A session on the CPU, so that a plan does not depend on the machine's GPU, without fusions.

    Beyond the basic level patterns are fused, and not the same ones with and without roundings.
    """
    return open_session(graph, optimization="basic", frugal=True)


def run(session: Any, outputs: Iterable[str], feed: Feed, file: str) -> list[np.ndarray]:
    """The named outputs for one feed.

    Raises:
        InputError: the graph does not take the inputs made from the examples of `file`.
    """
    quiet = onnxruntime_module().RunOptions()
    quiet.log_severity_level = 4  # the error says it in one line
    try:
        return [np.asarray(value) for value in session.run(list(outputs), dict(feed), quiet)]
    except Exception as error:
        raise InputError("the examples do not fit the graph's inputs", file, short_message(error)) from error
