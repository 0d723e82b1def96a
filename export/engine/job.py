"""The protocol between the command and its builder process: a job goes in, messages come out.

The builder runs in a process of its own because it is native code: where it crashes or eats the memory,
the command still ends with one line. The job is the first line on the process's standard input, which then
stays open: the process stops at its end. Messages are JSON lines on a pipe of their own, since
native libraries write to standard output as they please.
"""

from __future__ import annotations

import json
import os
import select
import threading
from dataclasses import dataclass
from typing import Any

from bertmp.core import errors
from bertmp.export.engine.engine_options import EngineOptions

ENGINE_FILE, NETWORK_FILE = "model.plan", "network.json"


@dataclass(frozen=True)
class Job:
    """One build.

    Attributes:
        graph: the FP16 ONNX file.
        plan: its precision plan; None for a graph without one.
        folder: an empty folder that takes `model.plan` and `network.json`.
        options: of the build.
        positions: the model's positions, where they are known.
    """

    graph: str
    plan: str | None
    folder: str
    options: EngineOptions
    positions: int | None = None

    def to_line(self) -> bytes:
        return json.dumps({**vars(self), "options": self.options.to_json(EngineOptions)}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Job:
        data = json.loads(line)
        return cls(**{**data, "options": EngineOptions(**data["options"])})


class Messages:
    """The builder process's end: sends messages, and hears when it should stop."""

    def __init__(self, descriptor: int, control: int) -> None:
        self._descriptor, self._control = descriptor, control
        self._lock = threading.Lock()
        self._heard = True

    def send(self, kind: str, **content: Any) -> None:
        """Sends one message. Threads of the builder may call it at the same time.

        Nothing is raised where the command is gone: this is called from inside native code, and
        `stop_wanted` then ends the build.
        """
        line = json.dumps({"kind": kind, **content}).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except BrokenPipeError:
                self._heard = False

    def stop_wanted(self) -> bool:
        """Whether the command closed our standard input: it was interrupted, or is no longer there."""
        # Nothing but the job is ever written to it, so readable means that it has ended.
        return not self._heard or bool(select.select([self._control], [], [], 0)[0])


def error_message(error: errors.BertmpError) -> dict[str, str]:
    """An error as a message's content."""
    return {"error": type(error).__name__, "what": error.what, "where": error.where, "todo": error.todo}


def error_from(message: dict[str, Any]) -> errors.BertmpError:
    """The error that a message of kind `error` carries."""
    kind = getattr(errors, message["error"])
    error: errors.BertmpError = kind(message["what"], message["where"], message["todo"])
    return error
