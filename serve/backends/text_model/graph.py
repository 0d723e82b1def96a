"""The graph behind a text model: in this process, or asked for inside the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from .cpu_session import NoBf16, open_session, require_bf16
from .reading import Window

Feed = dict[str, np.ndarray]
"""`input_ids`, `attention_mask` and `token_type_ids`, INT64 `[batch, length]` each."""

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Batching:
    """What windows may share a run.

    Attributes:
        rows: the most of them.
        tokens: the most tokens of a run, padding included; a longer window is a run of its own.
        padding: the most padding of a run, as a share of its tokens.
        length_step: lengths are rounded up to a multiple of it.
    """

    rows: int
    tokens: int
    padding: float = 0.0
    length_step: int = 1

    def groups(self, lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Runs, from short to long: the length that all are padded to, and the windows' numbers.

        Args:
            lengths: each window's tokens.
        """
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        members: list[int] = []
        real = padded = 0
        for number in order:
            rounded = -(-lengths[number] // self.length_step) * self.length_step
            size = (len(members) + 1) * rounded
            real += rounded
            fits = len(members) < self.rows and size <= self.tokens and size - real <= self.padding * size
            if members and not fits:
                yield padded, members
                members, real = [], rounded
            members, padded = [*members, number], rounded
        if members:
            yield padded, members


class Graph(Protocol):
    """Something that runs batches."""

    @property
    def precision(self) -> str | None:
        """What it computes in, `bf16` or `fp32`; None where the encoder's configuration says that."""

    def run_all(self, feeds: Sequence[Feed]) -> Iterator[Outputs | Any]:
        """The outputs of each batch by name, or the TritonError that it ended in; in the batches' order."""


def make_feed(windows: Sequence[Window], length: int, pad_id: int) -> Feed:
    """Windows as the inputs of a run, padded to `length`."""
    ids = np.full((len(windows), length), pad_id, dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for row, window in enumerate(windows):
        count = len(window)
        ids[row, :count], types[row, :count], mask[row, :count] = window.ids, window.types, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


class SessionGraph:
    """The graph in this process.

    Args:
        path: the ONNX file.
        outputs: those that are wanted.
        threads: of one run.
        precision: what it shall compute in, where this machine can.

    Attributes:
        precision: what it computes in, `bf16` or `fp32`.
    """

    def __init__(self, path: str, outputs: Sequence[str], threads: int, precision: str = "fp32") -> None:
        # Blocks that are kept for the next run are those of the largest run so far, and runs are of all
        # sizes: without them nothing is slower, and what is free is given back.
        self._session, self.precision = open_session(
            path, threads, precision, pb_utils.Logger.log_warn, keep_memory=False
        )
        self._outputs = list(outputs)

    def run_all(self, feeds: Sequence[Feed]) -> Iterator[Outputs | Any]:
        return map(self._run, feeds)

    def _run(self, feed: Feed) -> Outputs | Any:
        try:
            found = self._session.run(self._outputs, feed)
        except Exception as error:
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL)
        return dict(zip(self._outputs, found))  # noqa: B905 (equal by construction)


CALLS = 8
"""Requests to the encoder at once."""


class EncoderGraph:
    """The encoder's model of the same version, in the same server.

    Args:
        model, version: which one.
        outputs: those that are wanted.

    Attributes:
        precision: what it computes in, `bf16` or `fp32`; None where its configuration says that.
    """

    def __init__(
        self, model: str, version: int, outputs: Sequence[str], precision: str | None = None
    ) -> None:
        self.precision = precision
        self._model, self._version, self._outputs = model, version, list(outputs)
        self._pool = ThreadPoolExecutor(CALLS)

    def run_all(self, feeds: Sequence[Feed]) -> Iterator[Outputs | Any]:
        if len(feeds) == 1:
            return iter([self._ask(feeds[0])])
        return self._pool.map(self._ask, feeds)

    def _ask(self, feed: Feed) -> Outputs | Any:
        request = pb_utils.InferenceRequest(
            model_name=self._model,
            model_version=self._version,
            requested_output_names=self._outputs,
            # The TensorRT backend leaves outputs in the GPU's memory otherwise, where as_numpy() raises.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
            inputs=[pb_utils.Tensor(name, array) for name, array in feed.items()],
        )
        response = request.exec()
        if response.has_error():
            return response.error()
        get: Callable[[Any, str], Any] = pb_utils.get_output_tensor_by_name
        return {name: get(response, name).as_numpy() for name in self._outputs}


def open_graph(folder: str, version: int, settings: dict[str, Any], outputs: Sequence[str]) -> Graph:
    """The graph in this process where that is wanted and ONNX Runtime is installed, else the encoder.

    Args:
        folder: the text model's.
        settings: `encoder`, and where the graph is run here, its file `graph` in the encoder's version,
            `threads`, and `precision`: file → what it shall be run in, FP32 where it is not named.
    """
    encoder, file = settings["encoder"], settings.get("graph", "")
    if not file:
        return EncoderGraph(encoder, version, outputs)
    path = os.path.join(os.path.dirname(folder), encoder, str(version), file)
    precision = settings["precision"].get(file, "fp32")
    if not os.path.isfile(path):  # as where Triton copies each model from an object store
        pb_utils.Logger.log_warn(f"{encoder} is called: there is no {path}")
        return EncoderGraph(encoder, version, outputs, precision_here(precision))
    try:
        return SessionGraph(path, outputs, settings["threads"], precision)
    except ImportError as error:  # as in the stock container, whose own backend runs the graph in FP32
        pb_utils.Logger.log_warn(f"{encoder} is called: {error}")
        return EncoderGraph(encoder, version, outputs, "fp32")


def precision_here(wanted: str) -> str:
    """What the encoder of the same server computes in, where its version is for `wanted`."""
    try:
        if wanted == "bf16":
            require_bf16()
            return wanted
    except NoBf16:
        pass
    return "fp32"
