"""A graph in BF16 in a process of its own: arrays go in and come out through pipes.

The process is one of the server's own Python, whose packages are others than those of this one; `main` runs
there. A message is a line of JSON, which names the arrays that follow it as bytes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from . import NoBf16, open_bf16

MAIN = "import sys; sys.path.append(sys.argv[1]); from cpu_session.pipe import main; main(*sys.argv[2:])"
"""The code of the process; its arguments are the folder of this package, the graph and the threads."""


def send(stream: BinaryIO, arrays: Mapping[str, np.ndarray], **facts: Any) -> None:
    """Writes one message."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    heads = [[name, str(array.dtype), array.shape] for name, array in whole.items()]
    stream.write(json.dumps({"arrays": heads, **facts}).encode() + b"\n")
    for array in whole.values():
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads one message: its arrays and what else it says; None at the end.

    Raises:
        EOFError: it ends in the midst of a message.
    """
    line = stream.readline()
    if not line:
        return None
    facts = json.loads(line)
    arrays = {}
    for name, dtype, shape in facts.pop("arrays"):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        content = stream.read(size)
        if len(content) < size:
            raise EOFError("the other process ended in the midst of a message")
        arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    return arrays, facts


def main(graph: str, threads: str) -> None:
    """Answers batches until standard input ends.

    The first message says which ONNX Runtime it is, or why the graph cannot be run in BF16; each later one
    has the graph's outputs, or the runtime's `error`.
    """
    import onnxruntime

    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not get between the messages
    try:
        session = open_bf16(graph, int(threads))
    except NoBf16 as error:
        send(out, {}, no_bf16=str(error))
        return
    send(out, {}, onnxruntime=onnxruntime.__version__)
    names = [value.name for value in session.get_outputs()]
    while (asked := receive(sys.stdin.buffer)) is not None:
        try:
            send(out, dict(zip(names, session.run(names, asked[0]))))  # noqa: B905 (equal by construction)
        except Exception as error:
            send(out, {}, error=f"{type(error).__name__}: {error}")
